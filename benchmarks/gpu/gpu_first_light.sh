#!/usr/bin/env bash
# The first minutes on a new GPU, in the order of what they are worth.  Each step has its own time limit, and one that fails does
# not stop the next.  Run in the project's root:
#
#   bash benchmarks/gpu/gpu_first_light.sh [PHASE or STEP ...]     default: probe first
#
# Phases, which are some steps one after the other:
#   first      doctor engine capture train tests table parity, and eager where train failed             (9 minutes)
#   figures    minute eval profile learner combo walk sweep allocator table_16k table_go1 tf32          (20 minutes)
#   more       native table_64k nccl gloo mjx cold                                                      (8 minutes)
#   learners   apart soft rough legs                                                                    (10 minutes)
#
# Steps:
#   probe      compilers, versions, captures, the learner's update; needs no MuJoCo Warp
#   doctor     embodied-rl doctor
#   engine     the physics alone, eager and as graphs
#   capture    the environment, captured beside eager
#   combo      the same with inductor's horizontal fusion
#   train      six iterations of training, a resumption
#   eager      the same without graphs: are they to blame?
#   tests      the tests that need a GPU
#   parity     MuJoCo Warp beside mj_step
#   table      physics, environment, policy and update in env-steps/s: benchmarks/speed/gpu.py
#   table_go1  the same of go1_flat, and beside mjlab's Go1 where a peer_python lies beside this file
#   table_16k  the same of four times as many robots
#   table_64k  the same of sixteen times as many
#   minute     MINUTE seconds of training (140), stopped as by Ctrl-C
#   eval       the evaluation of what `minute` of the same call has trained
#   learner    the update beside rsl_rl's
#   walk       seconds until it walks
#   profile    kernels of a rollout and of an update by where they come from
#   sweep      the physics alone: numbers of robots, iterations of the solver
#   allocator  the graph's temporaries from torch's pool
#   tf32       training with TF32 products
#   native     go2_flat on this machine's cores: physics, environment, training
#   nccl       three iterations of one rank of torchrun, with NCCL
#   gloo       the same of two ranks that share the GPU
#   mjx        three iterations on MJX
#   cold       train again with every cache of kernels empty
#   apart      go2_flat on this machine's cores with its learner on the GPU: in turns, and both at once
#   soft       soft actor-critic, robots and replay on the GPU: go2_flat_sac
#   rough      pages on height fields: go2_rough, g1_legs_rough
#   legs       seconds until the legs of a humanoid walk: g1_legs_flat
#
# Variables:
#   DEVICE     cuda, or cpu: a rehearsal without a GPU
#   N          robots (4096; 16 on the CPU)
#   ITERATIONS of training before a table is measured (30; 2 on the CPU)
#   LIMIT      seconds in all (570; 3600 on the CPU): no step begins that could not end before
#   OUT        where results go (build/first_light): summary.txt, and logs, figures, traces and caches as .tar.gz; rewritten after every
#              step, so that a command that is killed has left what it had
#   PYTHON     the interpreter (.venv/bin/python where there is one)
#
# env.sh beside this file is sourced where there is one.  Exit status: 0 where no step failed.
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
phases=(first figures more learners)
steps=(probe doctor engine capture combo train eager tests parity table table_go1 table_16k table_64k minute eval learner walk
  profile sweep allocator tf32 native nccl gloo mjx cold apart soft rough legs)
[ $# -gt 0 ] || set -- probe first
for one in "$@"; do
  if [ "$one" = -h ] || [ "$one" = --help ]; then sed -n '/^#!/d; /^set /q; s/^# \{0,1\}//p' "$0"; exit 0; fi
  case " ${phases[*]} ${steps[*]} " in *" $one "*) ;; *) echo "no such step: $one; --help names them" >&2; exit 2 ;; esac
done
device=${DEVICE:-cuda} began=$(date +%s)
on_cpu='' patience=1; [ "$device" = cpu ] && on_cpu=1 patience=5  # nobody waits for a rehearsal
n=${N:-$([ $on_cpu ] && echo 16 || echo 4096)} limit=${LIMIT:-$([ $on_cpu ] && echo 3600 || echo 570)}
out=${OUT:-$PWD/build/first_light} work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
logs=$work/logs; mkdir -p "$out" "$logs" "$work/figures"
export OUT=$work PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1  # steps write into $work: few files may be wanted back
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
# shellcheck disable=SC1091
[ -f "$here/env.sh" ] && . "$here/env.sh"
summary=$out/summary.txt; : > "$summary"

pack() {  # what there is, into few files
  local what
  for what in logs figures traces; do
    [ -d "$work/$what" ] && tar -C "$work" -czf "$out/$what.tar.gz.new" "$what" && mv "$out/$what.tar.gz.new" "$out/$what.tar.gz"
  done
  true
}
caches() {  # Warp's, Triton's and inductor's, where env.sh has put them beside it: the next machine need not compile anew
  local what found
  for what in "warp_cache inductor triton" "warp_cache triton" warp_cache; do
    found=$(cd "$here" && ls -d $what 2> /dev/null)
    [ "$found" ] || return
    # shellcheck disable=SC2086
    tar -C "$here" --exclude='*.cu' --exclude=lto --exclude='*.o' -czf "$out/caches.tar.gz" $found
    [ "$(stat -c %s "$out/caches.tar.gz")" -le 15000000 ] && return
  done
  rm -f "$out/caches.tar.gz"  # too much to carry
}
note() { printf "$@" | tee -a "$summary"; }
step() {  # NAME SECONDS COMMAND...
  local name=$1 seconds=$(($2 * patience)) left=$((limit - $(date +%s) + began - 10)); shift 2
  if [ $left -lt $((seconds < 40 ? seconds : 40)) ]; then note '%-22s no time left (%s s)\n' "$name" $left; return; fi
  [ $seconds -gt $left ] && seconds=$left
  local log=$logs/$name.log brief=$work/brief started=$(date +%s%N) rc took
  rm -f "$brief"
  timeout -k 5 "$seconds" "$@" > "$log" 2>&1
  rc=$? took=$(($(date +%s%N) - started))
  note '%-22s rc %-3s %4s.%s s of %s   %s\n' "$name" $rc $((took / 1000000000)) $((took / 100000000 % 10)) "$seconds" \
    "$(tail -n 1 "$log" | cut -c1-110)"
  if [ -f "$brief" ]; then head -n 24 "$brief" | cut -c1-300 | sed 's/^/      /'
  elif [ $rc -eq 0 ]; then tail -n 4 "$log" | cut -c1-240 | sed 's/^/      /'; fi
  if [ $rc -ne 0 ]; then  # what is needed to mend it, should the machine be gone by then
    grep -n -m 6 -E 'Error|error:|FAILED|Traceback|cannot be captured' "$log" | cut -c1-300 | sed 's/^/      /'
    echo "   ... last lines of $name:"; tail -n 12 "$log" | cut -c1-300 | sed 's/^/      /'
  fi
  pack
}
skip() { note '%-22s skipped: %s\n' "$1" "$2"; }
failed() { grep -q "^$1 .* rc [1-9]" "$summary"; }

physics=(--device "$device" --num-envs "$n") engine=() quick=() rounds=(--rounds 5 --seconds 0.5) trained=${ITERATIONS:-30} pairs=()
if [ $on_cpu ]; then  # what is rehearsed is that it runs
  engine=(--engine warp) quick=(env.compile=false) rounds=(--rounds 1 --seconds 0.1) trained=${ITERATIONS:-2} pairs=(--pairs 20)
fi
looks() { step "$1" "$2" "$python" "$here/gpu_steps.py" "${@:3}" "${physics[@]}"; }
cli() { step "$1" "$2" "$python" -m embodied_rl "${@:3}"; }
table() {  # NAME PAGE ROBOTS [OPTION...]
  step "$1" 240 "$python" benchmarks/speed/gpu.py --device "$device" --no-tests --pages "$2" --num-envs "$3" --iterations "$trained" \
    "${rounds[@]}" --json "$work/figures/$1.json" "${@:4}" "${quick[@]}"
}
ranks() {  # NAME RANKS [key=value...]
  step "$1" 120 "$python" -m torch.distributed.run --nproc-per-node "$2" -m embodied_rl train go2_flat "${physics[@]}" "${engine[@]}" \
    --run-dir "$work/$1" --iterations 3 "${@:3}" "${quick[@]}"
}
trains() { cli "$1" "$2" bench train "$3" "${physics[@]}" "${engine[@]}" --json "$work/figures/$1.json" "${quick[@]}"; }
do_step() {
  local seconds=${MINUTE:-140} workers=5
  case $1 in
    probe)     step probe 150 "$python" "$here/gpu_probe.py" --device "$device" --json "$work/figures/probe.json" ;;
    doctor)    cli doctor 60 doctor ;;
    engine)    looks engine 120 engine ;;
    capture)   looks capture 200 capture "${quick[@]}" ;;
    combo)     if [ $on_cpu ]; then skip combo "inductor fuses so on a GPU alone"; else looks combo 150 capture --combo; fi ;;
    train)     looks train 150 train "${quick[@]}" ;;
    eager)     looks eager 150 train physics.graph=false "${quick[@]}" ;;
    tests)     # the files with GPU tests alone, the slow ones too; several at a time, for each waits for Python most of the while
               [ $on_cpu ] && workers=2
               # shellcheck disable=SC2046
               step tests 300 "$python" -m pytest -m gpu -q -p no:cacheprovider --durations=12 -n $workers --dist load \
                 -o addopts=--import-mode=importlib $(grep -rl 'mark\.gpu' tests --include='test_*.py') ;;
    parity)    step parity 120 "$python" benchmarks/parity/engines.py --engines warp --device "$device" "${pairs[@]}" \
                 --json "$work/figures/parity.json" ;;
    table)     table table go2_flat "$n" ;;
    table_go1) if [ -x "$here/peer_python" ]; then table table_go1 go1_flat "$n" --peer-python "$here/peer_python"
               else table table_go1 go1_flat "$n"; fi ;;
    table_16k) table table_16k go2_flat $((4 * n)) ;;
    table_64k) table table_64k go2_flat $((16 * n)) ;;
    minute)    step minute $((seconds + 40)) timeout --preserve-status -s INT "$seconds" "$python" -m embodied_rl train go2_flat \
                 "${physics[@]}" "${engine[@]}" --run-dir "$work/run" --iterations 100000 "${quick[@]}"
               mkdir -p "$work/figures/run"
               cp "$work"/run/{config.yaml,events*} "$(ls -t "$work"/run/checkpoints/model_*.pt 2> /dev/null | head -n 1)" \
                 "$work/figures/run/" 2> /dev/null
               pack ;;
    eval)      if [ -d "$work/run" ]; then cli eval 120 eval "$work/run" --json "$work/figures/eval.json"
               else skip eval "name minute before it"; fi ;;
    learner)   cli learner 180 bench learner go2_flat --device "$device" "${engine[@]}" --json "$work/figures/learner.json" "${quick[@]}" ;;
    walk)      if [ $on_cpu ]; then skip walk "embodied-rl bench walk go2_flat is the CPU's way"
               else cli walk 420 bench walk go2_flat "${physics[@]}" --json "$work/figures/walk.json"; fi ;;
    profile)   looks profile 150 profile "${quick[@]}" ;;
    sweep)     looks sweep 150 sweep ;;
    allocator) looks allocator 90 allocator ;;
    tf32)      looks tf32 200 tf32 "${quick[@]}" ;;
    native)    for measure in env train; do
                 cli "native_$measure" 120 bench $measure go2_flat --device cpu --num-envs "$n" --json "$work/figures/native_$measure.json"
               done ;;
    nccl)      ranks nccl 1 ;;
    gloo)      ranks gloo 2 distributed.backend=gloo ;;
    mjx)       cli mjx 240 train go2_flat --device "$device" --engine mjx --num-envs "$n" --run-dir "$work/mjx" --iterations 3 \
                 "${quick[@]}" ;;
    cold)      step cold 200 env WARP_CACHE_PATH="$work/cold" TORCHINDUCTOR_CACHE_DIR="$work/cold/inductor" \
                 TRITON_CACHE_DIR="$work/cold/triton" "$python" "$here/gpu_steps.py" train "${physics[@]}" "${quick[@]}" ;;
    apart)     for overlap in false true; do
                 cli apart_$overlap 120 bench train go2_flat --num-envs "$n" train.device="$device" train.overlap=$overlap \
                   --json "$work/figures/apart_$overlap.json" "${quick[@]}"
               done ;;
    soft)      trains soft 150 go2_flat_sac ;;
    rough)     trains rough_go2 150 go2_rough; trains rough_g1 150 g1_legs_rough ;;
    legs)      if [ $on_cpu ]; then skip legs "embodied-rl bench walk g1_legs_flat is the CPU's way"
               else cli legs 420 bench walk g1_legs_flat "${physics[@]}" --json "$work/figures/legs.json"; fi ;;
  esac
}

commit=$(git rev-parse --short HEAD 2> /dev/null || cat "$here/commit" 2> /dev/null || echo unknown)
note '%s %s on %s, %s robots, commit %s\n' "$(date -u +%FT%TZ)" "$*" "$device" "$n" "$commit"
for one in "$@"; do
  case $one in
    first)
      for part in doctor engine capture train; do do_step $part; done
      failed train && do_step eager
      for part in tests table parity; do do_step $part; done
      caches ;;
    figures) for part in minute eval profile learner combo walk sweep allocator table_16k table_go1 tf32; do do_step $part; done; caches ;;
    more)    for part in native table_64k nccl gloo mjx cold; do do_step $part; done ;;
    learners) for part in apart soft rough legs; do do_step $part; done; caches ;;
    *) do_step "$one" ;;
  esac
done
pack
printf '\n== summary, %s s\n' $(($(date +%s) - began)); cat "$summary"
echo "results: $out"
! grep -q ' rc [1-9]' "$summary"
