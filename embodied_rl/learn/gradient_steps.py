"""Gradient steps on minibatches: where a learner's arithmetic happens.

A step has two halves.  The first leaves the gradient of this process's rows, and sums beside it, in one flat bucket: in parts on
threads of our own on the CPU, at once on a GPU.  Between the two the bucket is summed over all processes.  The second clips,
asks the learner what follows from the means, and lets the optimizer step.  On a GPU each half is one CUDA graph.  Nothing is read
on the host, and no branch depends on data.

Legend: B rows of a minibatch, S sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from embodied_rl.cuda_graph import try_to_capture
from embodied_rl.errors import UserError
from embodied_rl.learn.advantages import Reduce
from embodied_rl.learn.cpu.team import Team
from embodied_rl.learn.optimizers import RMSprop

R = TypeVar("R")

#: Rows of the parts that threads share on the CPU: enough to hide what a part costs beside its arithmetic.
_PART = 1536


class GradientSteps:
    """An optimizer on the networks of a learner, whose gradients are clipped.

    Args:
        networks: what learns.
        loss: of rows, int64 (B,): their summed loss, and the sums (S,), of which the first is how many rows count.
        sums: the sums' names.
        judge: looks at the means over all processes' rows, (S,), before each step, and may set `rate`; bool (): where it holds,
            this step and the others of the iteration are left out.
        learning_rate: at the start.
        max_grad_norm: of each network, or of all together.
        one_pass: fills the bucket from rows in one pass, if it can; whether it did.
        optimizer: `ppo.optimizer`.
        clip: `ppo.clip_gradient`.
        device: where it computes.
        reduce: sums a tensor over all processes, in place.
        compiler: wraps the small arithmetic between gradient and optimizer, `torch.compile` on a GPU, or the identity.
        graph: replay both halves from CUDA graphs, on a GPU.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        loss: Callable[[Tensor], tuple[Tensor, Tensor]],
        sums: tuple[str, ...],
        judge: Callable[[Tensor], Tensor | None],
        learning_rate: float,
        max_grad_norm: float,
        one_pass: Callable[[Tensor, Tensor], bool],
        *,
        optimizer: Literal["adam", "rmsprop"] = "adam",
        clip: Literal["network", "all"] = "network",
        device: torch.device,
        reduce: Reduce,
        compiler: Callable,
        graph: bool,
    ) -> None:
        self._loss, self._judge, self._one_pass, self._reduce = loss, judge, one_pass, reduce
        self._device, self._max_grad_norm = device, max_grad_norm
        self.team = Team() if device.type == "cpu" else None
        """Threads that share rows on the CPU."""
        self.parameters = parameters = list(chain(*(network.parameters() for network in networks)))
        sizes, where = [parameter.numel() for parameter in parameters], parameters[0].device
        self._sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
        if clip == "all":
            self._sizes = [sum(self._sizes)]
        self.steps_per_row = 1
        """How many transitions a row is, of which each costs as much as another."""
        self.bucket = torch.zeros(sum(sizes) + len(sums), device=where)
        """The gradient, and behind it the sums."""
        self._gradient, self.sums = self.bucket[: sum(sizes)], self.bucket[sum(sizes) :]
        for parameter, part in zip(parameters, self._gradient.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter)  # what the optimizer reads
        self.rate = torch.tensor(learning_rate, device=where)
        """The learning rate."""
        self.captures = graph and device.type == "cuda"
        if optimizer == "rmsprop":
            self.optimizer, self._moments = RMSprop(parameters, self.rate), ("square_avg",)
        else:
            # capturable: torch refuses to capture a step otherwise, though a fused one reads nothing on the host
            self.optimizer = torch.optim.Adam(parameters, lr=self.rate, fused=True, capturable=self.captures)
            self._moments = ("exp_avg", "exp_avg_sq")
            # a minibatch's first step is no part of a graph, as torch would warn
            self.optimizer._warned_capturable_if_run_uncaptured = True  # pyright: ignore[reportAttributeAccessIssue]
        # 1: the optimizer leaves everything as it is
        self.optimizer.found_inf = self._found_inf = torch.zeros((), dtype=torch.float32, device=where)  # pyright: ignore[reportAttributeAccessIssue]
        self._stopped, self._one = torch.zeros((), dtype=torch.bool, device=where), torch.ones(1, device=where)
        self.sums_names, self.totals_names = sums, ("minibatches", *sums[1:], "grad_norm", "skipped", "stopped")
        self.totals = torch.zeros(len(self.totals_names), device=where)
        """Of an iteration: how many minibatches were applied, sums of their means, how many were skipped and stopped."""
        self._weigh = compiler(self._weigh)
        self.graphs: dict[tuple[str, int], Callable[[], None]] = {}
        self.rows: dict[int, Tensor] = {}
        """The rows that a minibatch of each size takes; graphs read them by address."""

    def begin(self) -> None:
        """Count a new iteration."""
        self.totals.zero_()
        self._stopped.zero_()

    def take(self, rows: Tensor) -> None:
        """Take a step on these rows, int64 (B,)."""
        size = self._place(rows)
        self._run(self.gradients, size)
        self._reduce(self.bucket)
        self._run(self.apply, size)

    def gradient_of(self, rows: Tensor) -> Tensor:
        """Take the first half alone: the bucket of these rows, int64 (B,), for another process; (P + S,), a copy."""
        self._run(self.gradients, self._place(rows))
        return self.bucket.clone()

    def take_sent(self, bucket: Tensor) -> None:
        """Take the second half alone, of a bucket that `gradient_of` filled elsewhere."""
        self.bucket.copy_(bucket)
        self._run(self.apply, 0)

    def _place(self, rows: Tensor) -> int:
        """Put rows where the first half reads them; how many they are."""
        size = len(rows)
        if size not in self.rows:
            self.rows[size] = torch.empty_like(rows)
        self.rows[size].copy_(rows)
        return size

    def gradients(self, size: int) -> None:
        """Take the first half: the gradient and the sums of this process's rows, into the bucket."""
        rows = self.rows[size]
        if not self._one_pass(rows, self.bucket):
            torch.sum(torch.stack(self.share(self._part, rows, self.steps_per_row)), dim=0, out=self.bucket)

    @torch.no_grad()
    def apply(self, size: int) -> None:
        """Take the second half: a step of the optimizer with the sums of all processes, unless something is off."""
        self._weigh()
        self.optimizer.step()

    def share(self, function: Callable[[Tensor], R], rows: Tensor, steps_per_row: int = 1) -> list[R]:
        """Results of parts of the rows, computed side by side on the CPU."""
        if self.team is None:
            return [function(rows)]
        # as many parts on every machine, whatever its cores: results are the same
        return self.team.map(function, rows.tensor_split(math.ceil(max(len(rows) * steps_per_row, 1) / _PART)))

    def forget_graphs(self) -> None:
        """Capture anew: tensors that the graphs read have moved."""
        self.graphs.clear()

    def state_dict(self) -> dict:
        """Return the optimizer's state; the learning rate is a plain number there, and nothing is of one device."""
        state = self.optimizer.state_dict()
        groups = [group | {"lr": float(self.rate), "capturable": False} for group in state["param_groups"]]
        return state | {"param_groups": groups}

    def load_state_dict(self, state: dict, rate: float | None) -> None:
        """Take up what `state_dict` gave, or the state of an Adam that was not fused; `rate` stands for the one in it.

        Raises:
            ValueError: its moments are not of these parameters; the fused step would write beyond them.
            UserError: it is another optimizer's.
        """
        (group,) = state["param_groups"]
        if moments := state["state"]:
            self._check_kind(moments)
            for index, parameter in zip(group["params"], self.parameters, strict=True):
                shapes = {name: tuple(moments.get(index, {})[name].shape) for name in (*self._moments, "step")}
                if shapes != dict.fromkeys(self._moments, parameter.shape) | {"step": ()}:
                    raise ValueError(f"moments {index} have the shapes {shapes}, and their parameter {tuple(parameter.shape)}")
        # its rate alone is the file's; and said beforehand: a fused optimizer's counts of steps lie on the device
        (own,) = self.optimizer.state_dict()["param_groups"]
        own |= {"lr": group["lr"], "params": group["params"], "foreach": None, "capturable": self.captures}
        self.optimizer.load_state_dict(state | {"param_groups": [own]})
        (group,) = self.optimizer.param_groups
        self.rate.fill_(float(group["lr"]) if rate is None else rate)
        group["lr"] = self.rate
        self.forget_graphs()  # they hold the addresses of the state before

    def _check_kind(self, moments: dict) -> None:
        kinds = {"square_avg": "rmsprop", "exp_avg": "adam"}
        given = {kind for name, kind in kinds.items() if any(name in one for one in moments.values())}
        if given and (own := kinds[self._moments[0]]) not in given:
            other = given.pop()
            raise UserError(f"ppo.optimizer: {own}: the checkpoint's is {other}, with other moments; take ppo.optimizer={other}")

    def _part(self, rows: Tensor) -> Tensor:
        """Gradient and sums of these rows, flat."""
        loss, sums = self._loss(rows)
        gradient = torch.autograd.grad(loss, self.parameters)
        return torch.cat((*(part.flatten() for part in gradient), sums))

    def _weigh(self) -> None:
        """Make means of the sums, clip them, and decide whether the step is taken."""
        share = 1.0 / self.sums[0].clamp(min=1.0)
        means, networks = self.sums * share, self._gradient.split(self._sizes)
        norms = torch.stack([sums.norm() for sums in networks]) * share
        factors = (self._max_grad_norm / (norms + 1e-6)).clamp(max=1.0) * share
        for sums, factor in zip(networks, factors, strict=True):
            sums.mul_(factor)
        stop = self._judge(means)
        if stop is not None:
            self._stopped.logical_or_(stop)
        skipped = ~(means.sum() + norms.sum()).isfinite()
        self._found_inf.copy_(skipped | self._stopped)
        counted = torch.where(skipped, 0.0, torch.cat((self._one, means[1:], norms[:1])))
        self.totals.add_(torch.cat((counted, torch.stack((skipped, self._stopped)).to(counted.dtype))))

    def _run(self, half: Callable[[int], None], size: int) -> None:
        """One half on minibatches of that size: from its CUDA graph from the second time on, when all it needs is there."""
        key = (half.__name__, size)
        if not self.captures:
            half(size)
        elif key not in self.graphs:
            half(size)
            self.graphs[key] = partial(self._capture, key, half)
        else:
            self.graphs[key]()

    def _capture(self, key: tuple[str, int], half: Callable[[int], None]) -> None:
        function = partial(half, key[1])
        graph = try_to_capture(function, self._device, what="the update")
        if graph is None:
            self.captures = False
            self.graphs.clear()
        else:
            self.graphs[key] = graph
        (graph or function)()
