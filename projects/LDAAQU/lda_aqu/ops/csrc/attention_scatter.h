// The gradients of key and value: what output pixels pass on to the input pixels that they read.
//
// The taps of a block of output pixels are listed by the cell of the input grid that they are in,
// so that what they pass on to its corners is summed in registers.
#pragma once
#include "attention.h"

namespace LDA_AQU_ISA {
namespace {

constexpr int64_t kBlockPixels = kBlockRows * kBlockColumns;
constexpr int64_t kUnitChannels = 128;  // of the value, and of the key, in a unit of work, at most
constexpr int64_t kUnitStep = 16;       // between the first channels of units

// For each cell of the input grid, the taps of a block that are in it. The number of a tap is its
// place in (k², kBlockPixels).
struct CellLists {
    int32_t* first;  // (bordered pixels): of a cell's list, or -1
    int32_t* next;   // (k², kBlockPixels): in the list of a tap, or -1
    int32_t* cells;  // (num_cells): those whose lists are not empty
    int64_t num_cells;
};

// What a thread works with beyond Scratch.
template <typename T>
struct ScatterScratch {
    CellLists lists;
    T* weights;  // (slices of a unit, k², kBlockPixels, 4)
    T* rows;     // (kBlockPixels, channels of a unit + kPad): output's gradient, query
};

template <typename T>
struct ScatterKernel : Kernel<T> {
    using Base = Kernel<T>;
    using Base::corner;
    using Base::num_points;
    using Base::p;

    // Channels of the value, or of the key, and which of a unit's channels they are.
    struct Slice {
        Segment segment;
        bool is_value;
        int64_t first;
    };

    // What one thread does: channels of one group, for which it lists the taps once.
    struct Unit {
        const Slice* slices;
        int64_t count, group;
    };

    T *attention, *grad_logits;      // (strips, heads, k², kStrip)
    int64_t unit_values, unit_keys;  // channels of a unit, at most
    Unit* units;                     // of each image
    int64_t num_units = 0;
    ScatterScratch<T>* scatter_scratch;

    ScatterKernel(const Problem& problem, Arena& arena) : Base(problem, arena) {
        attention = arena.take<T>(this->strips() * p.heads * corner);
        grad_logits = arena.take<T>(this->strips() * p.heads * corner);
        cut_into_units(arena);
        scatter_scratch = arena.take<ScatterScratch<T>>(p.threads);
        for (int64_t thread = 0; thread < p.threads; ++thread) {
            ScatterScratch<T> s;
            s.lists.first = arena.take<int32_t>(this->bordered_pixels());
            s.lists.next = arena.take<int32_t>(num_points * kBlockPixels);
            s.lists.cells = arena.take<int32_t>(num_points * kBlockPixels);
            s.weights = arena.take<T>(2 * p.heads * weights_size());
            s.rows = arena.take<T>(kBlockPixels * rows_stride());
            if (arena.base) scatter_scratch[thread] = s;
        }
    }

    int64_t weights_size() const { return 4 * num_points * kBlockPixels; }  // of a slice
    int64_t rows_stride() const { return unit_values + unit_keys + kPad; }

    // Into as few as keep the threads busy, for each of them lists all taps of its group.
    void cut_into_units(Arena& arena) {
        const int64_t values = p.channels / p.groups, keys = p.depth / p.groups;
        const int64_t most = values > keys ? values : keys;
        int64_t chunk = kUnitChannels;
        while (chunk > kUnitStep && wastes_threads(ceil_div(most, chunk))) chunk -= kUnitStep;
        const int64_t parts = ceil_div(most, chunk);
        unit_values = round_up(ceil_div(values, parts), kUnitStep);
        unit_keys = round_up(ceil_div(keys, parts), kUnitStep);
        Slice* slices = arena.take<Slice>(p.channels + p.depth);
        units = arena.take<Unit>(p.groups * parts);
        if (!arena.base) return;
        for (int64_t group = 0; group < p.groups; ++group)
            for (int64_t part = 0; part < parts; ++part) {
                Unit unit{slices, 0, group};
                slices = add_slices(p.channels, true, group, part * unit_values, slices);
                slices = add_slices(p.depth, false, group, part * unit_keys, slices);
                unit.count = slices - unit.slices;
                if (unit.count) units[num_units++] = unit;
            }
    }

    // Whether units leave more than a fifth of the threads' time, where each group has so many.
    bool wastes_threads(int64_t parts) const {
        const int64_t count = p.batch * p.groups * parts;
        return round_up(count, p.threads) * 4 > count * 5;
    }

    // Those of a unit whose channels begin at this one of the group.
    Slice* add_slices(int64_t channels, bool is_value, int64_t group, int64_t begin,
                      Slice* slices) const {
        const int64_t width = channels / p.groups;
        const int64_t end = min(begin + (is_value ? unit_values : unit_keys), width);
        for (int64_t at = begin; at < end;) {
            Segment segment = segment_at(group * width + at, channels, p);
            segment.end = min(segment.end, group * width + end);
            *slices++ = {segment, is_value, at - begin + (is_value ? 0 : unit_values)};
            at += segment.length();
        }
        return slices;
    }

    template <typename S>
    void scatter() const {
#pragma omp parallel for num_threads(static_cast<int>(p.threads)) schedule(dynamic)
        for (int64_t index = 0; index < p.batch * num_units; ++index)
            scatter_unit<S>(index / num_units, units[index % num_units],
                            scatter_scratch[omp_get_thread_num()]);
    }

    // All that the pixels of image n pass on to the channels of a unit.
    template <typename S>
    void scatter_unit(int64_t n, const Unit& unit, ScatterScratch<T>& scratch) const {
        CellLists& lists = scratch.lists;
        for (int64_t i = 0; i < this->bordered_pixels(); ++i) lists.first[i] = -1;
        for (int64_t i = 0; i < unit.count; ++i) clear_sums(n, unit.slices[i]);
        for (int64_t index = 0; index < this->blocks_per_image(); ++index) {
            prepare_block<S>(this->block_at(n * this->blocks_per_image() + index), unit, scratch);
            for (int64_t i = 0; i < unit.count; ++i)
                add_lists(n, unit.slices[i], scratch.weights + i * weights_size(), scratch);
            for (int64_t i = 0; i < lists.num_cells; ++i) lists.first[lists.cells[i]] = -1;
        }
        for (int64_t i = 0; i < unit.count; ++i) store_sums(n, unit.slices[i]);
    }

    // (bordered pixels, channels of a slice): in the place of the map, which is not read any more.
    T* sums_of(int64_t n, const Slice& slice) const {
        const GroupedMap<T>& map = slice.is_value ? this->value : this->key;
        return map.data + (n * map.channels + slice.segment.begin) * this->bordered_pixels();
    }

    void clear_sums(int64_t n, const Slice& slice) const {
        T* const sums = sums_of(n, slice);
        for (int64_t i = 0; i < this->bordered_pixels() * slice.segment.length(); ++i) sums[i] = 0;
    }

    // Lists the taps of a block, with what they weigh and what their pixels pass on.
    template <typename S>
    void prepare_block(const Block& block, const Unit& unit, ScatterScratch<T>& scratch) const {
        scratch.lists.num_cells = 0;
        for (int64_t row = 0; row < block.height; ++row) {
            for (int64_t i = 0; i < unit.count; ++i)
                load_rows<S>(block, row, unit.slices[i],
                             scratch.rows + row * kBlockColumns * rows_stride());
            for (int64_t column = 0; column < block.strips(); ++column)
                list_taps(block.strip(row, column), row * kBlockColumns + column * kStrip, unit,
                          scratch);
        }
    }

    // What the pixels of a row of a block pass on to the channels of a slice.
    template <typename S>
    void load_rows(const Block& block, int64_t row, const Slice& slice, T* rows) const {
        const Segment& segment = slice.segment;
        const int64_t pixel = this->output_pixel(block.strip(row, 0)), stride = rows_stride();
        if (slice.is_value)
            load_grad_output<S>(block, row, segment.begin, segment.length(), rows + slice.first,
                                stride);
        else
            load_pixels(this->query + pixel * p.depth + segment.begin, 1, p.depth, block.width,
                        segment.length(), rows + slice.first, stride, p.out_width * p.depth);
    }

    // Channels [first, first + count) of the output's gradient at a row of a block.
    template <typename S>
    void load_grad_output(const Block& block, int64_t row, int64_t first, int64_t count, T* rows,
                          int64_t row_stride) const {
        const int64_t* stride = p.output_strides;
        const S* grad = static_cast<const S*>(p.grad_output) + block.n * stride[0] +
                        first * stride[1] + (block.y + row) * stride[2] + block.x * stride[3];
        load_pixels(grad, stride[1], stride[3], block.width, count, rows, row_stride, stride[2]);
    }

    // The taps of a strip whose first pixel has this number in its block.
    void list_taps(const Strip& s, int64_t pixel, const Unit& unit,
                   ScatterScratch<T>& scratch) const {
        const Scratch<T>& shared = this->scratch[omp_get_thread_num()];
        const Taps<T>& taps = shared.taps[unit.group];
        this->place_taps(s, unit.group, taps);
        for (int64_t point = 0; point < num_points; ++point)
            append(taps.cell + point * kStrip, s.width, point * kBlockPixels + pixel,
                   scratch.lists);
        for (int64_t i = 0; i < unit.count; ++i) {
            const Slice& slice = unit.slices[i];
            const int64_t kept = (this->strip_index(s) * p.heads + slice.segment.head) * corner;
            const T* const factors = (slice.is_value ? attention : grad_logits) + kept;
            this->weigh_taps(taps, factors, shared.tap_weights);
            T* const weights = scratch.weights + i * weights_size() + 4 * pixel;
            for (int64_t point = 0; point < num_points; ++point)
                transpose(shared.tap_weights + point * kStrip, corner, 4, kStrip,
                          weights + 4 * point * kBlockPixels, 4);
        }
    }

    // Taps with consecutive numbers.
    static void append(const int32_t* cells, int64_t count, int64_t tap, CellLists& lists) {
        for (int64_t i = 0; i < count; ++i) {
            int32_t& first = lists.first[cells[i]];
            lists.cells[lists.num_cells] = cells[i];
            lists.num_cells += first < 0;
            lists.next[tap + i] = first;
            first = static_cast<int32_t>(tap + i);
        }
    }

    // What the lists pass on to the channels of a slice.
    void add_lists(int64_t n, const Slice& slice, const T* weights,
                   const ScatterScratch<T>& scratch) const {
        const CellLists& lists = scratch.lists;
        const int64_t length = slice.segment.length(), stride = rows_stride();
        const T* const rows = scratch.rows + slice.first;
        const auto row_of = [=](int32_t tap) { return rows + tap % kBlockPixels * stride; };
        T* const sums = sums_of(n, slice);
        for (int64_t i = 0; i < lists.num_cells; ++i) {
            const int32_t cell = lists.cells[i];
            T* const above = sums + cell * length;
            T* const below = above + this->bordered_width() * length;
            add_list(weights, lists.first[cell], lists.next, row_of, length,
                     {above, above + length, below, below + length});
        }
    }

    void store_sums(int64_t n, const Slice& slice) const {
        const Segment& segment = slice.segment;
        const int64_t key_strides[] = {p.in_height * p.in_width * p.depth, 1, p.in_width * p.depth,
                                       p.depth};
        const int64_t* stride = slice.is_value ? p.grad_value_strides : key_strides;
        T* const grad = static_cast<T*>(slice.is_value ? p.grad_value : p.grad_key) +
                        n * stride[0] + segment.begin * stride[1];
        const int64_t length = segment.length(), row_size = this->bordered_width() * length;
        const T* const sums = sums_of(n, slice) + row_size + length;
        for (int64_t y = 0; y < p.in_height; ++y)
            store_pixels(sums + y * row_size, length, p.in_width, length, grad + y * stride[2],
                         stride[1], stride[3]);
    }
};

}  // namespace
}  // namespace LDA_AQU_ISA
