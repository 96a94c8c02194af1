// One step of the temporal decoder for a few rows: every weight is read from memory once, which is what a
// step costs.
//
// Layout. A matrix [outputs, inputs] is cut into blocks of 64 outputs. Inputs are taken in words of 4 bytes:
// one float, two bfloat16 or four 8-bit integers. A block holds, word by word, the 64 outputs' words side by
// side, so a thread reads one unbroken stream, and each lane of a vector sums an output of its own: no
// horizontal sums. The same code then serves the three precisions; they differ in `dot` alone. A cache of keys
// is such a matrix whose outputs are positions, a cache of values one whose inputs are.
//
// Each row's arithmetic is the same whatever the number of rows and threads: an output is summed by one
// thread, in one order. So the same seed gives the same music, alone or among others.

#include "precision.h"

#include <atomic>
#include <thread>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace {

constexpr int BLOCK = 64;  // outputs side by side
constexpr int VECTORS = BLOCK / LANES;
constexpr int HEAD_DIM = 64;  // so a head's query, key and value are one block each
constexpr int LINES = 4;      // that a block's words of the same inputs fill
constexpr int LINE_WORDS = BLOCK / LINES;
constexpr int MAX_ROWS = 32;
constexpr float NORM_EPS = 1e-5f;
constexpr int64_t AHEAD = 2;         // rows whose scales are asked for before they are read
constexpr int64_t CHUNK_WORDS = 64;  // 16 KB of a block, which the nearest cache of a processor holds
constexpr int64_t LEAD = 256;        // lines between what is read and what is asked for: a chunk
constexpr int64_t PAGE = 64;         // lines; the processor's own foresight ends with one
constexpr int64_t TILE_ROWS = 4;     // with AVX-512 4 x 4 sums, 4 weights and 1 input lie in the 32 registers

struct Line {  // what memory hands over at once
    uint32_t words[LINE_WORDS];
};
static_assert(sizeof(Line) == 64 && BLOCK == LANES * VECTORS);

// ---- what Python hands over (abi.py mirrors these structures) ----------------------------------------

struct Matrix {
    const void* words;    // as in the legend above
    const float* scales;  // of each output; int8 only
    int64_t outputs, inputs;
};
struct Norm {
    const float *weight, *bias;
};
struct Cache {          // of every past and head
    void* keys;         // [pasts, heads]: a matrix of capacity outputs and 64 inputs
    void* values;       // [pasts, heads]: a matrix of 64 outputs and capacity inputs
    float* key_scales;  // [pasts, heads, capacity]; int8 only, as value_scales
    float* value_scales;
    int64_t capacity;
    const int64_t* pasts;  // of every slot (a row of the batch): takes of one video share its memory
};
struct Layer {
    Norm self_norm;
    Matrix self_in, self_out;  // in: a head's query, key and value are neighbours
    Norm cross_norm;
    Matrix cross_query, cross_memory, cross_out;  // memory: a head's key and value are neighbours
    Norm feed_forward_norm;
    Matrix up, down;
    Cache self_cache, cross_cache;
};
struct Decoder {
    int64_t precision;  // 0 fp32, 1 bf16, 2 int8
    int64_t dim, num_heads, num_layers, num_codebooks, codebook_size, memory_length, num_threads;
    int64_t num_steps;  // that the tables below hold
    const Layer* layers;
    const float* embeddings;  // [K, codebook_size + 1, dim]
    const float* positions;   // [num_steps, dim]
    const float* conditions;  // [slots, memory_length, dim]
    const float* bias;        // [heads, num_steps, memory_length], on the cross-attention's scores; or null
    const float* summary;     // [slots, dim], added to every input where there is no cross-attention; or null
    Norm out_norm;
    Matrix logits;
};
struct Span {  // of memory
    const void* begin;
    int64_t size;  // bytes
};
struct Rows {  // one position of one slot each: of the music, or of the visual memory
    int64_t count;
    const int64_t* codes;  // [count, K]
    const int64_t *slots, *positions;
    float* logits;  // [count, K, codebook_size]; null where they are not wanted
};

// ---- threads
// --------------------------------------------------------------------------------------------------------

class Barrier {  // spins, since a wait is of microseconds; yields, since the machine may be shared
  public:
    explicit Barrier(int threads) : threads_(threads) {}
    void wait() {
        int round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
            arrived_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; spins++) {
            if (spins > 4000) std::this_thread::yield();
#if defined(__x86_64__)
            else
                _mm_pause();
#endif
        }
    }

  private:
    const int threads_;
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<int> round_{0};
};

template <class Work>
void on_threads(int threads, Work work) {
    std::vector<std::thread> others;
    for (int t = 1; t < threads; t++) others.emplace_back(work, t);
    work(0);
    for (auto& other : others) other.join();
}

// ---- matrices
// -------------------------------------------------------------------------------------------------------

// What is read LEAD lines later, asked for line by line meanwhile, so that memory never idles. Where few rows
// are multiplied, a line after the other. Where many are, they ask for the lines of PAGES pages in turn, since
// the processor then foresees the way through each of them.
struct Ask {
    const Line* lines;
    int64_t per_word;   // lines that are asked for beside each word
    int64_t first = 0;  // in pages: how many of the lines others ask for
};
constexpr int64_t PAGES = LEAD / PAGE;
static_assert(CHUNK_WORDS == Int8::GROUP_WORDS, "a group's start is added once");

// What comes LEAD lines after lines [at, at + size) of a stream: in it, or in the one that is read next.
const Line* coming(const Line* stream, int64_t num_lines, const void* next, int64_t at, int64_t size) {
    if (at + LEAD + size <= num_lines || !next) return stream + at + LEAD;
    return (const Line*)next + std::max<int64_t>(0, at + LEAD - num_lines);
}

// Sums of words [first, first + num_words) of one block for some rows; they are added to `out`. Lines are read
// in their order in memory: where the sums outnumber the registers, moving them costs less than skipping lines.
template <class Format, int ROWS, bool IN_PAGES = false>
void products(const Line* lines, int64_t num_words, const Row* rows, int64_t first, Ask ask,
              Floats (*out)[VECTORS]) {
    const int64_t group = first / Format::GROUP_WORDS;
    typename Format::Sum sums[ROWS][VECTORS];
    const uint32_t* inputs[ROWS];
    for (int r = 0; r < ROWS; r++) {
        inputs[r] = rows[r].words + first;
        for (int v = 0; v < VECTORS; v++)
            if constexpr (Format::HAS_SCALES)
                sums[r][v] = typename Format::Sum{} + rows[r].starts[group];
            else
                sums[r][v] = out[r][v];
    }
    for (int64_t k = 0; k < num_words; k++) {
        for (int64_t line = 0; line < LINES; line++) {
            const int64_t n = k * ask.per_word + line, m = ask.first + n;
            const Line* asked = ask.lines + (IN_PAGES ? m % PAGES * PAGE + m / PAGES : n);
            if (line < ask.per_word) __builtin_prefetch(asked, 0, 2);
        }
        const Words* weights = (const Words*)(lines + k * LINES);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < VECTORS; v++)
                sums[r][v] = Format::dot(sums[r][v], weights[v], inputs[r][k]);
    }
    for (int r = 0; r < ROWS; r++)
        for (int v = 0; v < VECTORS; v++)
            if constexpr (Format::HAS_SCALES)
                out[r][v] += __builtin_convertvector(sums[r][v], Floats) * rows[r].scales[group];
            else
                out[r][v] = sums[r][v];
}

// The same for any number of rows: memory is read for the first few, the others find the words in the
// processor's nearest cache, and each few ask for their share of what comes.
template <class Format>
void products(const Line* lines, int64_t num_words, const Row* rows, int64_t num_rows, int64_t first,
              const Line* asked, Floats (*out)[VECTORS]) {
    const int64_t num_tiles = (num_rows + TILE_ROWS - 1) / TILE_ROWS;
    for (int64_t tile = 0; tile < num_tiles; tile++) {
        const int64_t r = tile * TILE_ROWS;
        const int64_t begin = LINES * tile / num_tiles, end = LINES * (tile + 1) / num_tiles;
        const bool in_pages = num_rows - r >= TILE_ROWS;
        const Ask ask = {asked + (in_pages ? 0 : begin * num_words), end - begin, begin * num_words};
        switch (std::min<int64_t>(TILE_ROWS, num_rows - r)) {
            case 1: products<Format, 1>(lines, num_words, rows + r, first, ask, out + r); break;
            case 2: products<Format, 2>(lines, num_words, rows + r, first, ask, out + r); break;
            case 3: products<Format, 3>(lines, num_words, rows + r, first, ask, out + r); break;
            default: products<Format, 4, true>(lines, num_words, rows + r, first, ask, out + r);
        }
    }
}

// Products of blocks [begin, end) of a matrix with some rows; sink(row, first output of a vector, their sums).
// next: what is read after them.
template <class Format, class Sink>
void multiply(const Matrix& matrix, int64_t begin, int64_t end, const Row* rows, int64_t num_rows,
              const void* next, Sink sink) {
    const int64_t num_words = matrix.inputs / Format::PER_WORD, num_lines = (end - begin) * num_words * LINES;
    const Line* stream = (const Line*)matrix.words + begin * num_words * LINES;
    Floats out[MAX_ROWS][VECTORS];
    for (int64_t b = begin, at = 0; b < end; b++) {
        std::fill(out[0], out[num_rows], Floats{});
        for (int64_t first = 0; first < num_words; first += CHUNK_WORDS) {
            const int64_t count = std::min(CHUNK_WORDS, num_words - first), size = count * LINES;
            products<Format>(stream + at, count, rows, num_rows, first,
                             coming(stream, num_lines, next, at, size), out);
            at += size;
        }
        for (int64_t r = 0; r < num_rows; r++)
            for (int v = 0; v < VECTORS; v++) {
                const int64_t output = b * BLOCK + v * LANES;
                if (Format::HAS_SCALES) out[r][v] *= load(matrix.scales + output);
                sink(r, output, out[r][v]);
            }
    }
}

// ---- one thread's part of a step
// ------------------------------------------------------------------------------------

struct Shared {  // what threads hand each other between two barriers
    std::vector<float> residual, mixed, hidden;
};

template <class Format>
class Worker {
  public:
    Worker(const Decoder& decoder, const Rows& rows, Shared& shared, Barrier& barrier, int thread)
        : d_(decoder),
          rows_(rows),
          shared_(shared),
          barrier_(barrier),
          thread_(thread),
          longest_(std::max(decoder.layers[0].self_cache.capacity, decoder.layers[0].cross_cache.capacity)),
          inputs_(rows.count, decoder.layers[0].up.outputs),
          weights_(2, longest_) {
        normed_.resize(d_.dim);
        heads_.resize(rows.count * 3 * HEAD_DIM);
        scores_.resize(longest_);
    }

    void step() {
        embed();
        for (int64_t l = 0; l < d_.num_layers; l++) {
            const Layer& layer = d_.layers[l];
            const bool has_cross = layer.cross_query.words;
            self_attention(layer, has_cross ? layer.cross_query : layer.up);
            if (has_cross) cross_attention(layer);
            feed_forward(layer, l + 1 < d_.num_layers ? d_.layers[l + 1].self_in : d_.logits);
        }
        if (!rows_.logits) return;
        read_normed(d_.out_norm);
        part_of(d_.logits, d_.layers[0].self_in, [&](int64_t r, int64_t o, Floats sums) {
            store(rows_.logits + r * d_.logits.outputs + o, sums);
        });
    }

    // The keys and values of some conditions, a row each; they stay the same for all steps.
    void fill_memory() {
        for (int64_t r = 0; r < rows_.count; r++)
            encode_row(r, d_.conditions + (rows_.slots[r] * d_.memory_length + rows_.positions[r]) * d_.dim,
                       d_.dim);
        for (int64_t l = 0; l < d_.num_layers; l++)
            for_my_heads([&](int64_t head) {
                multiply_head(d_.layers[l].cross_memory, head, 2, nullptr);
                for (int64_t r = 0; r < rows_.count; r++) write_cache(d_.layers[l].cross_cache, r, head, 0);
            });
    }

  private:
    void embed() {
        for (int64_t r = thread_; r < rows_.count; r += d_.num_threads) {
            float* x = &shared_.residual[r * d_.dim];
            const float* position = d_.positions + rows_.positions[r] * d_.dim;
            std::copy(position, position + d_.dim, x);
            if (d_.summary) add(d_.summary + rows_.slots[r] * d_.dim, x);
            for (int64_t k = 0; k < d_.num_codebooks; k++) {
                int64_t id = k * (d_.codebook_size + 1) + rows_.codes[r * d_.num_codebooks + k];
                add(d_.embeddings + id * d_.dim, x);
            }
        }
        barrier_.wait();
    }

    void add(const float* from, float* to) const {
        for (int64_t i = 0; i < d_.dim; i++) to[i] += from[i];
    }

    void self_attention(const Layer& layer, const Matrix& next) {
        read_normed(layer.self_norm);
        for_my_heads([&](int64_t head) {
            for (int64_t r = 0; r < AHEAD; r++) ask_for_scales(layer.self_cache, r, head);
            for (int64_t r = 0; r < rows_.count; r++) ask_to_write(layer.self_cache, r, head);
            multiply_head(layer.self_in, head, 3, keys_at(layer.self_cache, 0, head));
            for (int64_t r = 0; r < rows_.count; r++) write_cache(layer.self_cache, r, head, 1);
            for (int64_t r = 0; r < rows_.count; r++)
                attend(layer.self_cache, r, head, rows_.positions[r] + 1, nullptr,
                       after_head(layer.self_in, head, 3, layer.self_out));
        });
        project_attention(layer.self_out, next);
    }

    void cross_attention(const Layer& layer) {
        read_normed(layer.cross_norm);
        for_my_heads([&](int64_t head) {
            for (int64_t r = 0; r < AHEAD; r++) ask_for_scales(layer.cross_cache, r, head);
            multiply_head(layer.cross_query, head, 1, keys_at(layer.cross_cache, 0, head));
            for (int64_t r = 0; r < rows_.count; r++) {
                int64_t at = (head * d_.num_steps + rows_.positions[r]) * d_.memory_length;
                attend(layer.cross_cache, r, head, d_.memory_length, d_.bias ? d_.bias + at : nullptr,
                       after_head(layer.cross_query, head, 1, layer.cross_out));
            }
        });
        project_attention(layer.cross_out, layer.up);
    }

    void project_attention(const Matrix& matrix, const Matrix& next) {
        barrier_.wait();
        read(shared_.mixed.data(), d_.dim);
        add_to_residual(matrix, next);
    }

    void feed_forward(const Layer& layer, const Matrix& next) {
        const int64_t hidden_dim = layer.up.outputs;
        read_normed(layer.feed_forward_norm);
        part_of(layer.up, layer.down, [&](int64_t r, int64_t o, Floats sums) {
            store(&shared_.hidden[r * hidden_dim + o], gelu(sums));
        });
        barrier_.wait();
        read(shared_.hidden.data(), hidden_dim);
        add_to_residual(layer.down, next);
    }

    void add_to_residual(const Matrix& matrix, const Matrix& next) {
        part_of(matrix, next, [&](int64_t r, int64_t o, Floats sums) {
            float* x = &shared_.residual[r * d_.dim + o];
            store(x, load(x) + sums);
        });
        barrier_.wait();
    }

    // This thread's outputs of a matrix. next: the matrix that is read after it.
    template <class Sink>
    void part_of(const Matrix& matrix, const Matrix& next, Sink sink) {
        multiply<Format>(matrix, share(matrix, thread_), share(matrix, thread_ + 1), inputs_.rows.data(),
                         rows_.count, my_first(next), sink);
    }

    // The first block of a thread's share of a matrix. Heads are shared in whole.
    int64_t share(const Matrix& matrix, int64_t thread) const {
        const int64_t blocks = matrix.outputs / BLOCK,
                      parts = blocks % d_.num_heads ? 1 : blocks / d_.num_heads;
        return blocks / parts * thread / d_.num_threads * parts;
    }

    const void* my_first(const Matrix& matrix) const {
        return block_at(matrix, share(matrix, thread_));
    }

    const Line* block_at(const Matrix& matrix, int64_t index) const {
        return (const Line*)matrix.words + index * LINES * (matrix.inputs / PER_WORD);
    }

    // What is read once a head is done: the next head's blocks, or the next matrix.
    const void* after_head(const Matrix& matrix, int64_t head, int64_t parts, const Matrix& next) const {
        const int64_t end = (head + 1) * parts;
        return end == share(matrix, thread_ + 1) ? my_first(next) : block_at(matrix, end);
    }

    template <class Work>
    void for_my_heads(Work work) {
        int64_t end = d_.num_heads * (thread_ + 1) / d_.num_threads;
        for (int64_t head = d_.num_heads * thread_ / d_.num_threads; head < end; head++) work(head);
    }

    void multiply_head(const Matrix& matrix, int64_t head, int64_t parts, const void* next) {
        const int64_t first = head * parts;
        multiply<Format>(
            matrix, first, first + parts, inputs_.rows.data(), rows_.count, next,
            [&](int64_t r, int64_t o, Floats sums) { store(head_part(r, 0) + o - first * HEAD_DIM, sums); });
    }

    float* head_part(int64_t row, int64_t part) { return &heads_[(row * 3 + part) * HEAD_DIM]; }

    // Every thread encodes all rows for itself: cheaper than one more meeting of the threads.
    void read_normed(const Norm& norm) {
        for (int64_t r = 0; r < rows_.count; r++) {
            normalise(&shared_.residual[r * d_.dim], norm);
            encode_row(r, normed_.data(), d_.dim);
        }
    }

    void read(const float* x, int64_t n) {
        for (int64_t r = 0; r < rows_.count; r++) encode_row(r, x + r * n, n);
    }

    void encode_row(int64_t r, const float* x, int64_t n) { Format::encode(x, n, inputs_.rows[r]); }

    void normalise(const float* x, const Norm& norm) {
        Floats sum = {}, squares = {};
        for (int64_t i = 0; i < d_.dim; i += LANES) sum += load(x + i);
        const float mean = sum_lanes(sum) / d_.dim;
        for (int64_t i = 0; i < d_.dim; i += LANES) {
            Floats centred = load(x + i) - mean;
            squares += centred * centred;
        }
        const float scale = 1 / std::sqrt(sum_lanes(squares) / d_.dim + NORM_EPS);
        for (int64_t i = 0; i < d_.dim; i += LANES)
            store(&normed_[i], (load(x + i) - mean) * scale * load(norm.weight + i) + load(norm.bias + i));
    }

    static constexpr int PER_WORD = Format::PER_WORD;
    static constexpr int HEAD_WORDS = HEAD_DIM / PER_WORD;

    // The lines that `write_cache` will write to.
    void ask_to_write(const Cache& cache, int64_t r, int64_t head) const {
        const int64_t position = rows_.positions[r];
        const uint32_t* key = (const uint32_t*)keys_at(cache, r, head) +
                              position / BLOCK * HEAD_WORDS * BLOCK + position % BLOCK;
        for (int i = 0; i < HEAD_WORDS; i++) __builtin_prefetch(key + i * BLOCK, 1);
        const Line* values = values_at(cache, r, head) + position / PER_WORD * LINES;
        for (int i = 0; i < LINES; i++) __builtin_prefetch(values + i, 1);
        if (!Format::HAS_SCALES) return;
        __builtin_prefetch(cache.key_scales + cache_at(cache, r, head) + position, 1);
        __builtin_prefetch(cache.value_scales + cache_at(cache, r, head) + position, 1);
    }

    void write_cache(const Cache& cache, int64_t r, int64_t head, int64_t first_part) {
        const int64_t at = cache_at(cache, r, head);
        const int64_t position = rows_.positions[r];
        const float *key = head_part(r, first_part), *value = head_part(r, first_part + 1);
        uint32_t words[HEAD_WORDS];
        int32_t unused;
        Format::encode(key, HEAD_DIM, {words, cache.key_scales + at + position, &unused});
        uint32_t* keys = (uint32_t*)cache.keys + at * HEAD_WORDS + position / BLOCK * HEAD_WORDS * BLOCK +
                         position % BLOCK;
        for (int i = 0; i < HEAD_WORDS; i++) keys[i * BLOCK] = Format::stored(words[i]);

        Format::encode(value, HEAD_DIM, {words, cache.value_scales + at + position, &unused});
        for (auto& word : words) word = Format::stored(word);
        constexpr int SIZE = 4 / PER_WORD;
        char* values = (char*)cache.values + at * HEAD_DIM * SIZE + position / PER_WORD * BLOCK * 4;
        if (position % PER_WORD == 0)
            std::memset(values, 0, BLOCK * 4);  // no chance bits, even where they weigh nothing
        for (int i = 0; i < HEAD_DIM; i++)
            std::memcpy(values + i * 4 + position % PER_WORD * SIZE, (char*)words + i * SIZE, SIZE);
    }

    int64_t cache_at(const Cache& cache, int64_t row, int64_t head) const {
        return (cache.pasts[rows_.slots[row]] * d_.num_heads + head) * cache.capacity;
    }

    const Line* keys_at(const Cache& cache, int64_t row, int64_t head) const {
        return (const Line*)cache.keys + cache_at(cache, row, head) * HEAD_WORDS / LINE_WORDS;
    }

    const Line* values_at(const Cache& cache, int64_t row, int64_t head) const {
        return (const Line*)cache.values + cache_at(cache, row, head) * HEAD_WORDS / LINE_WORDS;
    }

    // While a head's weights stream in, or the rows before are attended to, memory fetches a row's scales.
    void ask_for_scales(const Cache& cache, int64_t r, int64_t head) const {
        if (!Format::HAS_SCALES || r >= rows_.count) return;
        const int64_t length = std::min(rows_.positions[r] + 1, cache.capacity);
        const int64_t at = cache_at(cache, r, head);
        ask(cache.key_scales + at, length * 4);
        ask(cache.value_scales + at, length * 4);
    }

    static void ask(const void* from, int64_t num_bytes) {
        for (int64_t i = 0; i < num_bytes; i += 64) __builtin_prefetch((const char*)from + i, 0, 2);
    }

    // softmax(query · keys) · values of one row and head, into `mixed`. after: what is read once all rows are.
    void attend(const Cache& cache, int64_t r, int64_t head, int64_t length, const float* bias,
                const void* after) {
        ask_for_scales(cache, r + AHEAD, head);
        const int64_t at = cache_at(cache, r, head);
        const Line* values = values_at(cache, r, head);
        score(keys_at(cache, r, head), cache.key_scales + at, head_part(r, 0), length, values);
        if (bias)
            for (int64_t i = 0; i < length; i++) scores_[i] += bias[i];
        const float total = weigh(length);
        if (Format::HAS_SCALES)
            for (int64_t i = 0; i < length; i++) scores_[i] *= cache.value_scales[at + i];
        const void* next = r + 1 < rows_.count ? keys_at(cache, r + 1, head) : after;
        mix(values, length, 1 / total, next, &shared_.mixed[r * d_.dim + head * HEAD_DIM]);
    }

    void score(const Line* keys, const float* scales, const float* query, int64_t length, const void* next) {
        float scaled[HEAD_DIM];
        for (int i = 0; i < HEAD_DIM; i++) scaled[i] = query[i] * 0.125f;  // 1 / sqrt(64)
        uint32_t words[HEAD_WORDS];
        float scale;
        int32_t start;
        Row row = {words, &scale, &start};
        Format::encode(scaled, HEAD_DIM, row);
        constexpr int64_t SIZE = HEAD_WORDS * LINES;  // of a block
        const int64_t num_lines = (length + BLOCK - 1) / BLOCK * SIZE;
        for (int64_t first = 0, at = 0; first < length; first += BLOCK, at += SIZE) {
            Floats sums[1][VECTORS] = {};
            const Ask ask = {coming(keys, num_lines, next, at, SIZE), LINES};
            products<Format, 1>(keys + at, HEAD_WORDS, &row, 0, ask, sums);
            for (int v = 0; v < VECTORS; v++) {
                if (Format::HAS_SCALES) sums[0][v] *= load(scales + first + v * LANES);
                store(&scores_[first + v * LANES], sums[0][v]);
            }
        }
    }

    // scores -> their exponentials, zeros up to a whole vector; returns their sum.
    float weigh(int64_t length) {
        const int64_t padded = (length + LANES - 1) / LANES * LANES;
        std::fill(&scores_[length], &scores_[0] + padded, -INFINITY);
        Floats largest = load(&scores_[0]);
        for (int64_t i = LANES; i < padded; i += LANES) largest = max(largest, load(&scores_[i]));
        const float top = max_lane(largest);
        Floats sum = {};
        for (int64_t i = 0; i < padded; i += LANES) {
            Floats weights = exp(load(&scores_[i]) - top);
            store(&scores_[i], weights);
            sum += weights;
        }
        std::fill(&scores_[length], &scores_[0] + padded, 0.0f);
        return sum_lanes(sum);
    }

    // Eight bits would lose the many small weights beside a large one: what they leave is a second row.
    void mix(const Line* values, int64_t length, float scale, const void* next, float* out) {
        constexpr int ROWS = Format::HAS_SCALES ? 2 : 1;
        const int64_t padded = (length + LANES - 1) / LANES * LANES;
        if constexpr (Format::HAS_SCALES)
            Format::encode_finely(&scores_[0], padded, weights_.rows[0], weights_.rows[1]);
        else
            Format::encode(&scores_[0], padded, weights_.rows[0]);
        Floats sums[ROWS][VECTORS] = {};
        const int64_t num_words = (length + PER_WORD - 1) / PER_WORD;
        for (int64_t first = 0; first < num_words; first += CHUNK_WORDS) {
            const int64_t count = std::min(CHUNK_WORDS, num_words - first), at = first * LINES;
            const Ask ask = {coming(values, num_words * LINES, next, at, count * LINES), LINES};
            products<Format, ROWS>(values + at, count, weights_.rows.data(), first, ask, sums);
        }
        for (int v = 0; v < VECTORS; v++) {
            if (ROWS == 2) sums[0][v] += sums[1][v];
            store(out + v * LANES, sums[0][v] * scale);
        }
    }

    const Decoder& d_;
    const Rows& rows_;
    Shared& shared_;
    Barrier& barrier_;
    const int64_t thread_;
    const int64_t longest_;
    Encoded<Format> inputs_;   // the rows as the next matrix reads them
    Encoded<Format> weights_;  // of an attention's values
    std::vector<float> normed_, heads_, scores_;
};

template <class Format>
void run(const Decoder& decoder, const Rows& rows, bool is_step) {
    Shared shared;
    shared.residual.resize(rows.count * decoder.dim);
    shared.mixed.resize(rows.count * decoder.dim);
    shared.hidden.resize(rows.count * decoder.layers[0].up.outputs);
    Barrier barrier(int(decoder.num_threads));
    on_threads(int(decoder.num_threads), [&](int thread) {
        Worker<Format> worker(decoder, rows, shared, barrier, thread);
        if (is_step)
            worker.step();
        else
            worker.fill_memory();
    });
}

void run(const Decoder& decoder, const Rows& rows, bool is_step) {
    if (decoder.precision == 0) run<Fp32>(decoder, rows, is_step);
    if (decoder.precision == 1) run<Bf16>(decoder, rows, is_step);
    if (decoder.precision == 2) run<Int8>(decoder, rows, is_step);
}

}  // namespace

extern "C" {

int64_t max_rows() { return MAX_ROWS; }

// Logits of some rows, whose keys and values join the caches. Rows of one slot must stand in the order of
// time.
void decoder_step(const Decoder* decoder, const Rows* rows) { run(*decoder, *rows, true); }

// The cross-attention's keys and values of the conditions that `rows` names; `codes` and `logits` are not
// read.
void decoder_fill_memory(const Decoder* decoder, const Rows* rows) { run(*decoder, *rows, false); }

static void advise(const void* begin, int64_t size, int advice) {
#if defined(__linux__)
    const uintptr_t page = 4096, first = ((uintptr_t)begin + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)begin + size) / page * page;
    if (end > first) madvise((void*)first, end - first, advice);
#else
    (void)begin, (void)size, (void)advice;
#endif
}

// Ask for pages of 2 MB: a step walks through all the weights, and small pages cost it a fifth of its time.
void use_large_pages(const void* begin, int64_t size) { advise(begin, size, 14 /* MADV_HUGEPAGE */); }

// Weights that a file is mapped for need no memory once they are packed. Other memory keeps what it holds.
void let_go(const void* begin, int64_t size) { advise(begin, size, 21 /* MADV_PAGEOUT */); }

// What a step cannot be faster than: reads the same memory with the same threads, and does nothing else.
// Returns a sum, so that nothing is skipped.
uint32_t read_all(const Span* spans, int64_t count, int64_t num_threads) {
    std::atomic<uint32_t> total{0};
    on_threads(int(num_threads), [&](int thread) {
        Words sums[8] = {};
        for (const Span* span = spans; span < spans + count; span++) {
            const Words* w = (const Words*)span->begin;
            const int64_t vectors = span->size / int64_t(sizeof(Words));
            const int64_t end = vectors * (thread + 1) / num_threads;
            int64_t i = vectors * thread / num_threads;
            for (; i + 8 <= end; i += 8)
                for (int v = 0; v < 8; v++) sums[v] += w[i + v];
            for (; i < end; i++) sums[0] += w[i];
        }
        for (auto& sum : sums) total += sum[0];
    });
    return total;
}
}
