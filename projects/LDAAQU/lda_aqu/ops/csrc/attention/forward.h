// The output of local deformable attention.
#pragma once
#include "kernel.h"

namespace attention::LDA_AQU_ISA {
namespace {

template <typename T>
struct Forward : Kernel<T> {
    using Base = Kernel<T>;
    using Base::num_points;
    using Base::p;
    using Base::table_size;

    Forward(const Problem& problem, Arena& arena) : Base(problem, arena) {}

    template <typename S>
    void compute() const {
        this->prepare();
        const int64_t* stride = p.output_strides;
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t index = 0; index < this->blocks(); ++index) {
            const Scratch<T>& scratch = this->scratch[omp_get_thread_num()];
            const Block block = this->block_at(index);
            for (int64_t row = 0; row < block.height; ++row) {
                for (int64_t column = 0; column < block.strips(); ++column) {
                    const Strip s = block.strip(row, column);
                    this->attend(s, scratch, scratch.attention);
                    sum_values(s, scratch, scratch.row + column * kStrip * this->row_stride());
                }
                S* out = static_cast<S*>(p.output) + block.n * stride[0] +
                         (block.y + row) * stride[2] + block.x * stride[3];
                store_pixels(scratch.row, this->row_stride(), block.width, p.channels, out,
                             stride[1], stride[3]);
            }
        }
    }

    void sum_values(const Strip& s, const Scratch<T>& scratch, T* out) const {
        for (int64_t at = 0; at < p.channels;) {
            const Segment segment = segment_at(at, p.channels, p);
            const Taps<T>& taps = scratch.taps[segment.group];
            const CornerRows<T> rows = this->rows_of(this->value, s.n, segment);
            this->weigh_taps(taps, scratch.attention + segment.head * table_size,
                             scratch.tap_weights);
            for (int64_t i = 0; i < s.width; ++i)
                weighted_sum<T>(scratch.tap_weights + i, rows, taps.cell + i, num_points,
                                segment.length(), out + i * this->row_stride() + at);
            at = segment.end;
        }
    }
};

}  // namespace
}  // namespace attention::LDA_AQU_ISA
