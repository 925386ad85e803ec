// SPDX-License-Identifier: Apache-2.0
// A GPU for a torch without CUDA. Its tensors lie in the host's memory, and the CPU's kernels
// compute on them; all else that torch knows of them is as on a GPU: which devices an op may mix,
// what autocast casts, which calls make the host wait.
//
// It must be loaded before torch asks for its first CUDA hook (docs: tests/pretend/gpu.py).
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

using namespace c10;
using Stack = torch::jit::Stack;

const Device kGpu(DeviceType::CUDA, 0);
const Stream kStream(Stream::DEFAULT, kGpu);

struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  static constexpr DeviceType static_type = DeviceType::CUDA;
  Device exchangeDevice(Device) const override { return kGpu; }
  Device getDevice() const override { return kGpu; }
  Stream getStream(Device) const noexcept override { return kStream; }
  Stream getNewStream(Device, int) const override { return kStream; }
  Stream exchangeStream(Stream) const noexcept override { return kStream; }
  void record(void**, const Stream&, DeviceIndex, EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard);

struct Memory final : Allocator {
  DataPtr allocate(size_t bytes) override {
    void* data = std::malloc(std::max<size_t>(bytes, 1));
    return {data, data, &std::free, kGpu};
  }
  DeleterFnPtr raw_deleter() const override { return &std::free; }
  void copy_data(void* to, const void* from, size_t bytes) const override {
    std::memcpy(to, from, bytes);
  }
};
Memory memory;

// The same memory, as that of another device.
Storage storage_on(Device device, const Storage& storage, Allocator* allocator) {
  DataPtr data(
      storage.mutable_data(), new Storage(storage),
      [](void* kept) { delete static_cast<Storage*>(kept); }, device);
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), std::move(data), allocator, true);
}

at::Tensor tensor_on(DispatchKey key, const at::Tensor& like, Storage storage) {
  auto made =
      at::detail::make_tensor<TensorImpl>(std::move(storage), DispatchKeySet(key), like.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return made;
}

// One call of an operator: its tensors as the CPU's kernel sees them, and what that returns as the
// caller does. Views stay views, and what was written in place is the tensor that was given.
class Call {
 public:
  bool host_too = false;  // besides the GPU's tensors some of the CPU, and not only numbers

  at::Tensor enter(const at::Tensor& given) {
    if (!given.defined()) return given;
    if (!given.is_cuda()) {
      host_too |= given.dim() > 0;
      return given;
    }
    for (const auto& [theirs, ours] : tensors_)
      if (theirs.is_same(given)) return ours;
    StorageImpl* key = given.storage().unsafeGetStorageImpl();
    auto found = entered_.find(key);
    if (found == entered_.end()) {
      Storage made =
          storage_on(Device(DeviceType::CPU), given.storage(), GetAllocator(DeviceType::CPU));
      left_.emplace(made.unsafeGetStorageImpl(), given.storage());
      found = entered_.emplace(key, made).first;
    }
    tensors_.emplace_back(given, tensor_on(DispatchKey::CPU, given, found->second));
    return tensors_.back().second;
  }

  at::Tensor leave(const at::Tensor& result) const {
    if (!result.defined()) return result;
    for (const auto& [theirs, ours] : tensors_)
      if (ours.is_same(result)) return theirs;
    auto found = left_.find(result.storage().unsafeGetStorageImpl());
    return tensor_on(
        DispatchKey::CUDA, result,
        found != left_.end() ? found->second : storage_on(kGpu, result.storage(), &memory));
  }

  // Gives the shape and memory of results that the kernel made larger to what was given for them.
  void resize_given() const {
    for (const auto& [theirs, ours] : tensors_) {
      auto* impl = theirs.unsafeGetTensorImpl();
      if (ours.storage().data() != theirs.storage().data())
        impl->set_storage_keep_dtype(storage_on(kGpu, ours.storage(), &memory));
      impl->set_sizes_and_strides(ours.sizes(), ours.strides(), ours.storage_offset());
    }
  }

 private:
  std::unordered_map<StorageImpl*, Storage> entered_;  // ours by theirs
  std::unordered_map<StorageImpl*, Storage> left_;     // theirs by ours
  std::vector<std::pair<at::Tensor, at::Tensor>> tensors_;
};

// Replaces every tensor of a value by what `change` makes of it; tells whether one is on the GPU.
template <class Change>
bool change_tensors(IValue& value, const Change& change) {
  bool any = false;
  const auto one = [&](const at::Tensor& tensor) {
    any |= tensor.defined() && tensor.is_cuda();
    return change(tensor);
  };
  if (value.isTensor()) {
    value = one(value.toTensor());
  } else if (value.isTensorList()) {
    List<at::Tensor> made;
    for (const at::Tensor& tensor : value.toTensorVector()) made.push_back(one(tensor));
    value = made;
  } else if (value.isOptionalTensorList()) {
    List<std::optional<at::Tensor>> made;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
      made.push_back(tensor ? std::optional(one(*tensor)) : std::nullopt);
    value = made;
  }
  return any;
}

const std::unordered_set<std::string> kMayMix = {"aten::copy_", "aten::index", "aten::index_put_",
                                                 "aten::_index_put_impl_"};
const std::unordered_set<std::string> kWaits = {"aten::_local_scalar_dense",
                                                "aten::nonzero",
                                                "aten::masked_select",
                                                "aten::_unique2",
                                                "aten::unique_dim",
                                                "aten::unique_consecutive",
                                                "aten::bincount",
                                                "aten::equal",
                                                "aten::repeat_interleave"};
bool refuse_waits = false;

// Whether the host would wait for a GPU: its values make a result or a shape, or are copied.
bool waits(const std::string& name, const IValue* arguments) {
  if (name == "aten::copy_") {
    const auto &to = arguments[0].toTensor(), &from = arguments[1].toTensor();
    return to.is_cuda() != from.is_cuda() && !arguments[2].toBool();
  }
  if (kMayMix.count(name))
    for (const std::optional<at::Tensor>& index : arguments[1].toOptionalTensorVector())
      if (index && index->defined() && (index->scalar_type() == kBool || !index->is_cuda()))
        return true;
  return kWaits.count(name) > 0;
}

void by_the_cpu(const OperatorHandle& op, Stack* stack) {
  const std::string& name = op.schema().name();
  IValue* arguments = stack->data() + stack->size() - op.schema().arguments().size();
  TORCH_CHECK(!refuse_waits || !waits(name, arguments),
              "called a synchronizing CUDA operation: ", name);
  Call call;
  bool on_gpu = false;
  for (IValue* value = arguments; value != stack->data() + stack->size(); ++value) {
    on_gpu |= change_tensors(*value, [&](const at::Tensor& t) { return call.enter(t); });
    if (value->isDevice()) *value = Device(DeviceType::CPU);
  }
  TORCH_CHECK(!on_gpu || !call.host_too || kMayMix.count(name),
              "Expected all tensors to be on the same device, but found cuda:0 and cpu, in ", name);
  op.callBoxed(stack);
  call.resize_given();
  for (size_t i = stack->size() - op.schema().returns().size(); i < stack->size(); ++i)
    change_tensors((*stack)[i], [&](const at::Tensor& t) { return call.leave(t); });
}

at::Tensor empty(SymIntArrayRef size, std::optional<ScalarType> dtype, std::optional<Layout>,
                 std::optional<Device>, std::optional<bool>, std::optional<MemoryFormat> format) {
  return at::detail::empty_generic(C10_AS_INTARRAYREF_SLOW(size), &memory,
                                   DispatchKeySet(DispatchKey::CUDA), dtype_or_default(dtype),
                                   format);
}

at::Tensor empty_strided(SymIntArrayRef size, SymIntArrayRef stride,
                         std::optional<ScalarType> dtype, std::optional<Layout>,
                         std::optional<Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(
      C10_AS_INTARRAYREF_SLOW(size), C10_AS_INTARRAYREF_SLOW(stride), &memory,
      DispatchKeySet(DispatchKey::CUDA), dtype_or_default(dtype));
}

// What copy.deepcopy and torch.save take a tensor's memory by.
at::Tensor& set_view(at::Tensor& self, Storage storage, SymInt offset, SymIntArrayRef size,
                     SymIntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}
at::Tensor& set_storage(at::Tensor& self, Storage storage) {
  const SymInt count = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  return set_view(self, std::move(storage), 0, count, SymInt(1));
}

// The CPU has no other kernel of attention by this name.
int64_t plain_attention(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                        const std::optional<at::Tensor>&, double, bool, std::optional<double>,
                        bool) {
  return 0;
}

struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  int getNumGPUs() const override { return 1; }
  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  Device getDeviceFromPtr(void*) const override { return kGpu; }
  Allocator* getCUDADeviceAllocator() const override { return &memory; }
  Allocator* getPinnedMemoryAllocator() const override { return GetAllocator(DeviceType::CPU); }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override {
    return at::detail::getDefaultCPUGenerator();
  }
};

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  SetAllocator(DeviceType::CUDA, &memory);
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("set_.source_Storage", set_storage);
  m.impl("set_.source_Storage_storage_offset", set_view);
  m.impl("_fused_sdp_choice", plain_attention);
  // Those that torch computes by what it finds out of the device itself.
  for (const char* name : {"copy_", "convolution", "convolution_backward"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

}  // namespace

namespace at {
using ::CUDAHooks;
REGISTER_CUDA_HOOKS(CUDAHooks);
}  // namespace at

extern "C" void pretend_refuse_waits(bool refuse) { refuse_waits = refuse; }
