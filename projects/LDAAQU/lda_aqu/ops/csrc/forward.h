// The output.
#pragma once
#include "attention.h"
#include "layout.h"

namespace LDA_AQU_ISA {
namespace {

template <typename T>
struct ForwardKernel : Kernel<T> {
    using Base = Kernel<T>;
    using Base::num_points;
    using Base::p;
    using Base::points;
    using Base::taps;

    T* tiles;        // (threads, kBlock, C + kPad): output pixels of a row of a block
    T* tap_weights;  // (threads, taps)

    ForwardKernel(const Problem& problem, Arena& arena) : Base(problem, arena) {
        tiles = arena.take<T>(p.threads * this->tile_size());
        tap_weights = arena.take<T>(p.threads * round_up(taps, 16));
    }

    template <typename S>
    void forward() const {
        const int64_t* stride = p.output_strides;
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t index = 0; index < this->blocks(); ++index) {
            const int thread = omp_get_thread_num();
            T* tile = tiles + thread * this->tile_size();
            const Block block = this->block_at(index);
            for (int64_t y = block.y; y < block.y + block.height; ++y) {
                for (int64_t i = 0; i < block.width; ++i)
                    forward_pixel(block.n, y, block.x + i, this->scratch[thread],
                                  tap_weights + thread * round_up(taps, 16),
                                  tile + i * this->tile_stride());
                S* out = static_cast<S*>(p.output) + block.n * stride[0] + y * stride[2] +
                         block.x * stride[3];
                store_pixels(tile, this->tile_stride(), block.width, p.channels, out, stride[1],
                             stride[3]);
            }
        }
    }

    void forward_pixel(int64_t n, int64_t y, int64_t x, const Scratch<T>& s, T* weights,
                       T* out) const {
        this->attend(n, y, x, s);
        const T* image = this->value + n * p.in_height * p.in_width * p.channels;
        for (int64_t at = 0; at < p.channels;) {
            const Segment segment = segment_at(at, p.channels, p);
            const Taps<T>& placed = s.taps[segment.group];
            this->find_rows(placed, image + at, p.channels, s.rows);
            this->weigh_taps(placed, s.attention + segment.head * points, weights);
            weighted_sum<T>(weights, s.rows, 4 * num_points, segment.end - at, out + at);
            at = segment.end;
        }
    }
};

}  // namespace
}  // namespace LDA_AQU_ISA
