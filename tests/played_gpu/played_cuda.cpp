// What torch asks of CUDA before an operation reaches a kernel: a device that can be counted and guarded, pinned memory, generators.
// All of it on the CPU, for tests/played_gpu.py.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>

#include <map>
#include <mutex>

namespace {

const c10::Device kPlayed(c10::DeviceType::CUDA, 0);

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return kPlayed; }
  c10::Device getDevice() const override { return kPlayed; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kPlayed); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kPlayed); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
};

C10_REGISTER_GUARD_IMPL(CUDA, Guard)

// Memory of the CPU's that is known to be pinned.
struct Pinned final : c10::Allocator {
  static Pinned& instance() {
    static Pinned pinned;
    return pinned;
  }
  c10::DataPtr allocate(size_t bytes) override {
    void* data = c10::alloc_cpu(bytes);
    std::lock_guard<std::mutex> lock(mutex_);
    sizes_[reinterpret_cast<uintptr_t>(data)] = bytes;
    return {data, data, &forget, c10::Device(c10::DeviceType::CPU)};
  }
  bool holds(const void* data) {
    const auto where = reinterpret_cast<uintptr_t>(data);
    std::lock_guard<std::mutex> lock(mutex_);
    auto next = sizes_.upper_bound(where);
    return next != sizes_.begin() && where < (--next)->first + next->second;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &forget; }
  void copy_data(void* to, const void* from, std::size_t count) const override { default_copy_data(to, from, count); }

 private:
  static void forget(void* data) {
    {
      std::lock_guard<std::mutex> lock(instance().mutex_);
      instance().sizes_.erase(reinterpret_cast<uintptr_t>(data));
    }
    c10::free_cpu(data);
  }
  std::mutex mutex_;
  std::map<uintptr_t, size_t> sizes_;
};

struct Generator final : at::CPUGeneratorImpl {
  Generator() { device_ = kPlayed; }
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex current_device() const override { return 0; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  int getNumGPUs() const override { return 1; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &Pinned::instance(); }
  bool isPinnedPtr(const void* data) const override { return Pinned::instance().holds(data); }
  at::Generator getNewGenerator(c10::DeviceIndex = -1) const override { return at::make_generator<Generator>(); }
  const at::Generator& getDefaultGenerator(c10::DeviceIndex = -1) const override { return at::detail::getDefaultCPUGenerator(); }
  void deviceSynchronize(c10::DeviceIndex) const override {}
};

// their registry's macros ask for names that lie in its namespace
}  // namespace

namespace at {
using CUDAHooks = Hooks;
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at
