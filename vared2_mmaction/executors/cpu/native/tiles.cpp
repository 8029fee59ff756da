// Copyright (c) vared2_mmaction contributors. Licensed under the Apache License, Version 2.0.
#include "tiles.h"

#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <utility>

namespace vared2 {

namespace {

constexpr int64_t kBlock = 64;       // output channels of a product: four vectors
constexpr int64_t kPositions = 400;  // of a tile, for which all kernels are read once
constexpr int64_t kFewest = 64;      // positions of a tile that are worth reading them
constexpr int64_t kNear = 112;       // positions whose sums stay in the nearest cache for all taps

constexpr const char* kRecorded = "vared2::convolve_tiles";  // what profilers see

int64_t divided(int64_t number, int64_t by) { return (number + by - 1) / by; }

// z += x w for x of (positions, inputs), w of (inputs, channels).
void add_product(int64_t positions, int64_t channels, int64_t inputs, const float* x,
                 int64_t x_stride, const float* w, float* z, int64_t z_stride) {
#ifdef CPUBLAS_BRGEMM_F32F32F32
  at::native::cpublas::brgemm(positions, channels, inputs, x_stride, kBlock, z_stride, true, x, w,
                              z, false);
#else
  TORCH_CHECK(false, "this PyTorch has no products of float32");
#endif
}

// Work for 0 to number - 1, each by the thread that is free: tiles at the ends of clips have fewer
// taps, and threads are disturbed by what else runs.
template <class Work>
void share_out(int64_t number, const Work& work) {
  std::atomic<int64_t> next{0};
  at::parallel_for(0, std::min<int64_t>(number, at::get_num_threads()), 1, [&](int64_t, int64_t) {
    for (int64_t i = next++; i < number; i = next++) work(i);
  });
}

}  // namespace

bool Window::along_time() const {
  auto one = [](const std::array<int64_t, 3>& sizes) { return sizes[1] == 1 && sizes[2] == 1; };
  return one(kernel) && one(stride) && padding[1] == 0 && padding[2] == 0;
}

Clips Window::output(const Clips& clips, int64_t channels) const {
  const std::array<int64_t, 3> in{clips.frames, clips.rows, clips.columns};
  std::array<int64_t, 3> out;
  for (size_t d = 0; d < 3; ++d) {
    const int64_t last = in[d] + 2 * padding[d] - dilation[d] * (kernel[d] - 1) - 1;
    out[d] = last < 0 ? 0 : last / stride[d] + 1;
  }
  return {clips.number, out[0], out[1], out[2], channels};
}

// What is computed as runs of neighbouring positions, which read neighbouring positions: a line of
// a frame, or where a position reads no other any part of a frame.
class TiledConvolution::Grid {
 public:
  // There are at least as many tiles as workers, if there are as many runs.
  Grid(const Window& window, const Clips& in, const Part& part, int64_t workers)
      : part(part), window_(window), in_(in) {
    const Clips out = window.output(in, part.channels);
    frames = divided(out.frames, part.step);
    area = out.area();
    const int64_t most = std::clamp<int64_t>(divided(positions(), workers), 1, kPositions);
    length_ = window.along_time() ? divided(area, divided(area, most)) : out.columns;
    runs_of_frame_ = divided(area, length_);
    runs_ = static_cast<int64_t>(part.rows.size()) * frames * runs_of_frame_;
    const int64_t tiles = divided(runs_, std::max<int64_t>(most / length_, 1));
    tile_ = divided(runs_, std::min(runs_, divided(tiles, workers) * workers));
  }

  int64_t positions() const { return static_cast<int64_t>(part.rows.size()) * frames * area; }
  // The first position of a run, of all that is computed.
  int64_t start(int64_t run) const {
    return run / runs_of_frame_ * area + run % runs_of_frame_ * length_;
  }

  int64_t length() const { return length_; }
  int64_t tiles() const { return divided(runs_, tile_); }
  int64_t positions_of_tile() const { return std::min(tile_ * length_, positions()); }
  // The first run of a tile, and the one behind its last.
  std::pair<int64_t, int64_t> runs_of(int64_t tile) const {
    return {tile * tile_, std::min(runs_, (tile + 1) * tile_)};
  }

  // What a tap of a run reads: of how many positions, from which on, and where.
  struct Reads {
    int64_t positions, first;
    const float* from;
  };
  Reads reads(const float* x, int64_t run, int64_t dt, int64_t dy, int64_t dx) const {
    const int64_t frame = run / runs_of_frame_, place = run % runs_of_frame_;
    const auto& [kernel, stride, padding, dilation] = window_;
    const int64_t t = frame % frames * part.step * stride[0] - padding[0] + dt * dilation[0];
    if (t < 0 || t >= in_.frames) return {};
    const float* from = x + part.rows[frame / frames] * in_.clip() + t * in_.frame();
    if (window_.along_time()) {
      const int64_t first = place * length_;
      return {std::min(length_, area - first), 0, from + first * in_.channels};
    }
    const int64_t row = place * stride[1] - padding[1] + dy * dilation[1];
    if (row < 0 || row >= in_.rows) return {};
    const int64_t shift = dx * dilation[2] - padding[2];  // of the first column
    if (shift >= in_.columns) return {};
    const int64_t first = shift < 0 ? divided(-shift, stride[2]) : 0;
    const int64_t end = std::min(length_, (in_.columns - 1 - shift) / stride[2] + 1);
    const int64_t column = first * stride[2] + shift;
    return {end - first, first, from + (row * in_.columns + column) * in_.channels};
  }

  const Part& part;
  int64_t frames, area;  // of a clip, and of a frame

 private:
  const Window& window_;
  const Clips& in_;
  int64_t length_, runs_of_frame_;
  int64_t runs_, tile_;  // in all, and those that are computed together
};

bool TiledConvolution::available() {
  static const bool found = [] {
    std::vector<float> x(kBlock), w(kBlock * kBlock), z(kBlock);
    try {
      add_product(1, kBlock, kBlock, x.data(), kBlock, w.data(), z.data(), kBlock);
    } catch (const c10::Error&) {
      return false;
    }
    return true;
  }();
  return found;
}

TiledConvolution::TiledConvolution(const at::Tensor& kernels, const std::optional<at::Tensor>& bias,
                                   const Window& window)
    : window_(window), inputs_(kernels.size(1)) {
  const int64_t outputs = kernels.size(0), blocks = divided(outputs, kBlock);
  const at::Tensor filled =
      at::constant_pad_nd(kernels.detach().flatten(2), {0, 0, 0, 0, 0, blocks * kBlock - outputs});
  kernels_ = filled.view({blocks, kBlock, inputs_, window.taps()})
                 .permute({0, 3, 2, 1})
                 .contiguous();
  bias_ = bias ? bias->detach().contiguous() : at::zeros({outputs}, kernels.options());
}

void TiledConvolution::compute(const float* x, const Grid& grid, int64_t begin, int64_t end,
                               int64_t block, float* computed) const {
  const int64_t channels = grid.part.channels, first = block * kBlock;
  const int64_t number = std::min(kBlock, channels - first), origin = grid.start(begin);
  const float* bias = bias_.const_data_ptr<float>() + first;
  for (int64_t p = 0; p < grid.start(end) - origin; ++p)
    std::copy_n(bias, number, computed + p * channels + first);
  const auto& [kt, kh, kw] = window_.kernel;
  const int64_t near = std::max<int64_t>(kNear / grid.length(), 1), taps = window_.taps();
  for (int64_t from = begin; from < end; from += near) {
    const float* w = kernels_.const_data_ptr<float>() + block * taps * inputs_ * kBlock;
    for (int64_t tap = 0; tap < taps; ++tap, w += inputs_ * kBlock) {
      for (int64_t run = from; run < std::min(end, from + near); ++run) {
        const auto reads = grid.reads(x, run, tap / (kh * kw), tap / kw % kh, tap % kw);
        if (reads.positions <= 0) continue;
        float* z = computed + (grid.start(run) - origin + reads.first) * channels + first;
        add_product(reads.positions, number, inputs_, reads.from, window_.stride[2] * inputs_, w, z,
                    channels);
      }
    }
  }
}

int64_t TiledConvolution::positions(const Clips& in, const Part& part) const {
  return Grid(window_, in, part, 1).positions();
}

bool TiledConvolution::occupies_threads(const Clips& in, const Part& part) const {
  return positions(in, part) >= kFewest * at::get_num_threads();
}

void TiledConvolution::convolve(const float* x, const Clips& in, const Part& part,
                                const Receive& receive) const {
  RECORD_FUNCTION(kRecorded, c10::ArrayRef<const c10::IValue>());
  const int64_t threads = at::get_num_threads(), blocks = divided(part.channels, kBlock);
  // Where taps lie in other frames, the first and last frames of a clip have fewer.
  const Grid grid(window_, in, part, window_.kernel[0] > 1 ? 2 * threads : threads);
  const int64_t room = grid.positions_of_tile() * part.channels;
  const at::Tensor rooms = at::empty({threads, room}, kernels_.options());
  float* const first_room = rooms.mutable_data_ptr<float>();
  share_out(grid.tiles(), [&](int64_t tile) {
    float* z = first_room + at::get_thread_num() * room;
    const auto [begin, end] = grid.runs_of(tile);
    for (int64_t block = 0; block < blocks; ++block) compute(x, grid, begin, end, block, z);
    const int64_t origin = grid.start(begin), last = grid.start(end);
    for (int64_t p = origin; p < last;) {  // frame by frame
      const int64_t frame = p / grid.area, next = std::min(last, (frame + 1) * grid.area);
      receive(z + (p - origin) * part.channels, frame / grid.frames, frame % grid.frames,
              p % grid.area, next - p);
      p = next;
    }
  });
}

at::Tensor TiledConvolution::convolve(const float* x, const Clips& in, const Part& part) const {
  RECORD_FUNCTION(kRecorded, c10::ArrayRef<const c10::IValue>());
  const int64_t blocks = divided(part.channels, kBlock), threads = at::get_num_threads();
  // So many tiles that all threads have as much to do, but none of so few positions that kernels
  // are read again for little.
  const int64_t most = std::max<int64_t>(positions(in, part) * 4 / kFewest, 1);
  const Grid grid(window_, in, part, std::min(threads / std::gcd(threads, blocks), most));
  const int64_t clips = static_cast<int64_t>(part.rows.size()), tiles = grid.tiles();
  at::Tensor computed =
      at::empty({clips, grid.frames, grid.area, part.channels}, kernels_.options());
  float* z = computed.mutable_data_ptr<float>();
  const bool by_block = kernels_.numel() > clips * in.clip();
  share_out(tiles * blocks, [&](int64_t i) {
    // What is larger is read once: kernels block after block, or the input tile after tile.
    const int64_t tile = by_block ? i % tiles : i / blocks;
    const int64_t block = by_block ? i / tiles : i % blocks;
    const auto [begin, end] = grid.runs_of(tile);
    compute(x, grid, begin, end, block, z + grid.start(begin) * part.channels);
  });
  return computed;
}

}  // namespace vared2
