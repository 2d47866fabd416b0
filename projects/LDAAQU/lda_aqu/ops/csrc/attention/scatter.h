// The gradients of key and value: output pixels add to those of the input pixels that they read.
//
// The taps of a block of output pixels are listed by cell, so that what they add to the cell's
// corners is summed in registers.
#pragma once
#include "kernel.h"

namespace attention::LDA_AQU_ISA {
namespace {

constexpr int64_t kBlockPixels = kBlockRows * kBlockColumns;
constexpr int64_t kUnitChannels = 128;  // of the value, and of the key, in a unit, at most
constexpr int64_t kUnitStep = kLine;    // their number is a multiple of it

// For each cell, the taps of a block that are in it, as a linked list. The number of a tap is its
// place in (k², kBlockPixels).
struct CellLists {
    int32_t* first;  // (bordered pixels): the first tap in a cell, or -1
    int32_t* next;   // (k², kBlockPixels): the tap after a tap in the same cell, or -1
    int32_t* cells;  // (num_cells): the cells whose lists are not empty
    int64_t num_cells;
};

// What a thread works with beside Scratch.
template <typename T>
struct ScatterScratch {
    CellLists lists;
    T* weights;  // (slices of a unit, k², kBlockPixels, 4)
    T* rows;  // (kBlockPixels, channels of a unit + kPad): of the output's gradient and the query
};

template <typename T>
struct Scatter : Kernel<T> {
    using Base = Kernel<T>;
    using Base::num_points;
    using Base::p;
    using Base::table_size;

    // A segment, or a part of one, of the value or of the key.
    struct Slice {
        Segment segment;
        bool is_value;
        int64_t first;  // of its channels among those of the unit
    };

    // What a thread does at a time: slices of one group, for which it lists the taps once.
    struct Unit {
        const Slice* slices;
        int64_t count, group;
    };

    T *attention, *grad_logits;      // (strips, heads, k², kStrip)
    int64_t unit_values, unit_keys;  // channels of a unit, at most
    Unit* units;                     // (num_units): the same for each image
    int64_t num_units = 0;
    ScatterScratch<T>* scatter_scratch;

    Scatter(const Problem& problem, Arena& arena) : Base(problem, arena) {
        attention = arena.take<T>(this->strips() * p.heads * table_size);
        grad_logits = arena.take<T>(this->strips() * p.heads * table_size);
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

    // Into as few units as keep the threads busy, as each of them lists all taps of its group.
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

    // Whether threads are idle for more than a fifth of the time if groups have so many units each.
    bool wastes_threads(int64_t parts) const {
        const int64_t count = p.batch * p.groups * parts;
        return round_up(count, p.threads) * 4 > count * 5;
    }

    // Appends the slices of a unit whose channels begin at channel `begin` of the group.
    Slice* add_slices(int64_t channels, bool is_value, int64_t group, int64_t begin,
                      Slice* slices) const {
        const int64_t group_width = channels / p.groups;
        const int64_t end = min(begin + (is_value ? unit_values : unit_keys), group_width);
        for (int64_t at = begin; at < end;) {
            Segment segment = segment_at(group * group_width + at, channels, p);
            segment.end = min(segment.end, group * group_width + end);
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

    // The gradients of the channels of a unit in image n.
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

    // The gradient of a slice, (bordered pixels, channels of the slice), over the copy of the map,
    // which is not read any more.
    T* sums_of(int64_t n, const Slice& slice) const {
        const GroupedMap<T>& map = slice.is_value ? this->value : this->key;
        return map.data + (n * map.channels + slice.segment.begin) * this->bordered_pixels();
    }

    void clear_sums(int64_t n, const Slice& slice) const {
        T* const sums = sums_of(n, slice);
        for (int64_t i = 0; i < this->bordered_pixels() * slice.segment.length(); ++i) sums[i] = 0;
    }

    // Lists the taps of a block; fills in scratch.weights and scratch.rows.
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

    // The rows of the pixels in a row of a block, for a slice.
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

    // Lists the taps of a strip whose first pixel has this number in its block.
    void list_taps(const Strip& s, int64_t pixel, const Unit& unit,
                   ScatterScratch<T>& scratch) const {
        const Scratch<T>& shared = this->scratch[omp_get_thread_num()];
        const Taps<T>& taps = shared.taps[unit.group];
        this->place_taps(s, unit.group, taps);
        for (int64_t point = 0; point < num_points; ++point)
            prepend(taps.cell + point * kStrip, s.width, point * kBlockPixels + pixel,
                    scratch.lists);
        for (int64_t i = 0; i < unit.count; ++i) {
            const Slice& slice = unit.slices[i];
            const int64_t kept = (this->strip_index(s) * p.heads + slice.segment.head) * table_size;
            const T* const factors = (slice.is_value ? attention : grad_logits) + kept;
            this->weigh_taps(taps, factors, shared.tap_weights);
            T* const weights = scratch.weights + i * weights_size() + 4 * pixel;
            for (int64_t point = 0; point < num_points; ++point)
                transpose(shared.tap_weights + point * kStrip, table_size, 4, kStrip,
                          weights + 4 * point * kBlockPixels, 4);
        }
    }

    // Prepends taps with consecutive numbers, from `tap` on, to the lists of their cells.
    static void prepend(const int32_t* cells, int64_t count, int64_t tap, CellLists& lists) {
        for (int64_t i = 0; i < count; ++i) {
            int32_t& first = lists.first[cells[i]];
            lists.cells[lists.num_cells] = cells[i];
            lists.num_cells += first < 0;
            lists.next[tap + i] = first;
            first = static_cast<int32_t>(tap + i);
        }
    }

    // Adds to the gradient of a slice what the listed taps contribute.
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
}  // namespace attention::LDA_AQU_ISA
