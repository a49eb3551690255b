// Calls one compiled kernel with what a file holds and writes its arrays to another: for processors that are emulated.
// Usage: driver KERNEL INPUT OUTPUT. The input is four counts (whole numbers, real numbers, arrays, and arrays of the
// table of weights), then the numbers, then of every array its size in bytes and its bytes; no bytes: a null pointer.
// Arrays come in the order of the kernel's arguments. The output is all arrays and what the kernel returned.
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#define KERNELS(T) \
    void norm_##T(void *, void *, void *, long, long, float); \
    void gate_##T(void *, void *, long, long, long); \
    void attend_##T(void *, void *, void *, void *, void *, long, void *, void *, long, void *, void *, long, long, \
                    long, long); \
    void step_##T(void *, void *, float, void *, void *, void *, void *, void *, long, void *, void *, long, void *, \
                  void *, void *, long); \
    long draw_##T(void *, long, float, void *, void *, void *, void *, void *, void *, void *, long, long, long);
extern "C" {
KERNELS(float32)
KERNELS(bfloat16)
}

template <class X> static std::vector<X> numbers(FILE *in, size_t count) {
    std::vector<X> found(count);
    if (fread(found.data(), sizeof(X), count, in) != count) { fprintf(stderr, "the input is too short\n"); exit(2); }
    return found;
}

int main(int, char **argv) {
    std::string kernel = argv[1];
    FILE *in = fopen(argv[2], "rb"), *to = fopen(argv[3], "wb");
    if (!in || !to) { fprintf(stderr, "cannot open the files\n"); return 2; }
    auto counts = numbers<long>(in, 4);
    auto n = numbers<long>(in, counts[0]);
    auto f = numbers<float>(in, counts[1]);
    std::vector<std::vector<char>> arrays;
    std::vector<size_t> sizes;
    std::vector<void *> p, table;
    for (long i = 0; i < counts[2] + counts[3]; i++) {
        size_t size = numbers<long>(in, 1)[0];
        arrays.push_back(numbers<char>(in, size)), sizes.push_back(size);
        arrays.back().resize(size + 64, -1);  // whole vectors are read; what is there is no number
        (i < counts[2] ? p : table).push_back(size ? arrays.back().data() : nullptr);
    }
    void *w = table.data();
    long got = 0;
    bool known = true;
#define CALL(T) \
    if (kernel == "norm_" #T) norm_##T(p[0], p[1], p[2], n[0], n[1], f[0]); \
    else if (kernel == "gate_" #T) gate_##T(p[0], p[1], n[0], n[1], n[2]); \
    else if (kernel == "attend_" #T) attend_##T(p[0], p[1], p[2], p[3], p[4], n[0], p[5], p[6], n[1], p[7], p[8], \
                                                n[2], n[3], n[4], n[5]); \
    else if (kernel == "step_" #T) step_##T(w, p[0], f[0], p[1], p[2], p[3], p[4], p[5], n[0], p[6], p[7], n[1], \
                                            p[8], p[9], p[10], n[2]); \
    else if (kernel == "draw_" #T) got = draw_##T(p[0], n[0], f[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7], n[1], \
                                                  n[2], n[3]); \
    else
    CALL(float32) CALL(bfloat16) known = false;
    if (!known) { fprintf(stderr, "no kernel %s\n", argv[1]); return 2; }
    for (size_t i = 0; i < arrays.size(); i++) fwrite(arrays[i].data(), 1, sizes[i], to);
    fwrite(&got, sizeof got, 1, to);
    return fclose(to);
}
