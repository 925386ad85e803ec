// SPDX-License-Identifier: Apache-2.0
// Bilinear upsampling of maps of logits, align_corners=False: where pixels lie, and who does which.
//
// The pixels between two neighbouring rows of a map are a band. Bands are cut into chunks by the
// sizes alone, one task each, so that results are the same, bit by bit, at any number of threads.
#pragma once

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "cpu/rows.h"
#include "cpu/upsample_kernels.h"

namespace pipa {

struct Upsampling {
  const void* logits;  // [images, classes, low_height, low_width]
  Dtype dtype;
  int64_t images;
  int64_t classes;
  int64_t low_height, low_width;  // of the map, >= 1
  int64_t height, width;          // of the pixels

  int64_t bands() const { return std::max<int64_t>(low_height - 1, 1); }
  int64_t pixels() const { return images * height * width; }
  int64_t values() const { return images * classes * low_height * low_width; }

  // Some 64 tasks in all: enough for many threads, and a chunk's last row is kept apart.
  int64_t chunk() const {  // bands
    const int64_t per_image = (64 + images - 1) / std::max<int64_t>(images, 1);
    return (bands() + per_image - 1) / per_image;
  }
  int64_t chunks() const { return (bands() + chunk() - 1) / chunk(); }  // of an image
  int tasks() const { return height * width > 0 ? static_cast<int>(images * chunks()) : 0; }

  // A row of all classes as a worker keeps it: close together, unlike in the map, whose planes are
  // often a power of two apart and would then all meet in a few sets of the cache.
  int64_t stride() const { return low_width + kMaxLanes; }
  int64_t row_floats() const { return classes * stride(); }
};

// The bands of a task.
struct Chunk {
  int64_t image, index;
  int64_t begin, end;  // bands, and the rows of the map above them

  Chunk(const Upsampling& maps, int task)
      : image(task / maps.chunks()),
        index(task % maps.chunks()),
        begin(index * maps.chunk()),
        end(std::min(maps.bands(), begin + maps.chunk())) {}
};

// Where the centres of `full` pixels lie between the cells of a map of `low` along one axis. The
// last cell's neighbour is reached with a share of 1 and not as a place of its own.
void place_pixels(int64_t low, int64_t full, int64_t padded,
                  int32_t* before,  // [padded] the cell at or before a centre
                  float* share);    // [padded] of the next cell

// What all tasks of a call read, and a place for each worker.
class UpsamplingPlan {
 public:
  // `work` is the number of floats that the caller wants for each worker.
  UpsamplingPlan(Arena* arena, const Upsampling& maps, int threads, int64_t work);

  void fill() const;

  // Calls visit(band, index, pixel, work) for a chunk's bands that have pixels and for those that
  // have none; pixel is the number of the band's first.
  template <class Visit>
  void visit_bands(const Chunk& chunk, int worker, const Visit& visit) const {
    float* rows = workers_ + worker * worker_floats_;
    float *above = rows, *below = rows + maps_.row_floats(), *work = below + maps_.row_floats();
    stage_row(chunk.image, chunk.begin, above);
    for (int64_t index = chunk.begin; index < chunk.end; ++index) {
      if (maps_.low_height > 1) stage_row(chunk.image, index + 1, below);
      const int64_t first = first_row_[index];
      const Band band{above,
                      maps_.low_height > 1 ? below : above,
                      maps_.stride(),
                      static_cast<int>(maps_.classes),
                      left_,
                      right_,
                      lower_ + first,
                      static_cast<int>(first_row_[index + 1] - first),
                      static_cast<int>(maps_.width)};
      visit(band, index, (chunk.image * maps_.height + first) * maps_.width, work);
      std::swap(above, below);
    }
  }

 private:
  void stage_row(int64_t image, int64_t row, float* to) const;  // [classes, stride]

  Upsampling maps_;
  int64_t padded_, worker_floats_;
  int32_t *left_, *above_;
  int32_t* first_row_;  // [bands + 1] of pixels
  float *right_, *lower_;
  float* workers_;  // [threads, worker_floats]
};

}  // namespace pipa
