/* test_base.c: the room everything stands on. */
#include "base/base.h"
#include "base/table.h"

#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <dirent.h>

#include <setjmp.h>
#include <cmocka.h>

static char scratch[4096];

static int set_up(void **state) {
    (void)state;
    snprintf(scratch, sizeof scratch, "%s/tests/base test XXXXXX", getenv("CHM_BUILD_ROOT"));
    return mkdtemp(scratch) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    char *command = chm_format("chmod -R u+w '%s' && rm -rf '%s'", scratch, scratch);
    int bad = system(command);
    chm_free(command);
    return bad;
}

/* ---- errors ---- */

static void *fails_elsewhere(void *arg) {
    (void)arg;
    assert_string_equal(chm_error(), "");
    chm_fail(CHM_E_DATA, "another thread's");
    return NULL;
}

static void keeps_one_sentence_a_thread(void **state) {
    (void)state;
    pthread_t thread;
    assert_int_equal(chm_fail(CHM_E_CONFIG, "line %d", 3), CHM_E_CONFIG);
    assert_int_equal(chm_fail_prefix(CHM_E_DATA, "card.json"), CHM_E_DATA);
    assert_string_equal(chm_error(), "card.json: line 3");
    assert_int_equal(pthread_create(&thread, NULL, fails_elsewhere, NULL), 0);
    pthread_join(thread, NULL);
    assert_string_equal(chm_error(), "card.json: line 3");
    chm_fail(CHM_E_CONFIG, "again: %s", chm_error());
    assert_string_equal(chm_error(), "again: card.json: line 3");
    /* A sentence is one line, and moves no cursor; several problems have a line each. */
    chm_fail(CHM_E_DATA, "%s", "a\n\033[2J\x7f\xc2\x9b\xff \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\xc3");
    assert_string_equal(chm_error(), "a??[2J??? \xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80?");
    chm_fail_lines(CHM_E_DATA, "one\n\033two");
    chm_fail_prefix(CHM_E_DATA, "three\n");
    assert_string_equal(chm_error(), "three?: one\n?two");
    /* For those who hear only that it failed. */
    assert_int_equal(chm_failed(CHM_E_CONFIG), CHM_E_CONFIG);
    chm_fail_prefix(CHM_E_MEMORY, "four");
    assert_int_equal(chm_failed(CHM_E_CONFIG), CHM_E_MEMORY);
    /* Longer than there is room for: cut, and still a string. */
    static char longer[100000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    chm_fail(CHM_E_CONFIG, "%s", longer);
    size_t n = strlen(chm_error());
    assert_true(n >= 1000 && n < sizeof longer);
    for (int i = 0; i < 30; i++) chm_fail_prefix(CHM_E_CONFIG, "%s", longer);
    assert_true(strlen(chm_error()) > n && strlen(chm_error()) < sizeof longer);
    /* The reason, at its end, is not what is cut. */
    chm_fail(CHM_E_CONFIG, "%s: no such thing", longer);
    assert_int_equal(strlen(chm_error()), n);
    assert_non_null(strstr(chm_error(), "xx ... xx"));
    assert_string_equal(chm_error() + n - 16, "x: no such thing");
}

/* ---- memory ---- */

static void fails_when_told_to(void **state) {
    (void)state;
    uint64_t before = chm_alloc_count();
    chm_alloc_fail_after(2);
    void *a = chm_alloc(10), *b = chm_alloc_aligned(10);
    assert_non_null(a);
    assert_non_null(b);
    assert_null(chm_alloc(10));
    assert_non_null(strstr(chm_error(), "out of memory: 10 bytes"));
    assert_null(chm_alloc_aligned(10));
    assert_null(chm_realloc(NULL, 10));
    assert_null(chm_strdup("x"));
    assert_null(chm_format("%d", 1));
    chm_alloc_fail_after(-1);
    assert_int_equal(chm_alloc_count() - before, 2);
    assert_int_equal((uintptr_t)b % 64, 0);
    for (int i = 0; i < 10; i++) assert_int_equal(((char *)a)[i] | ((char *)b)[i], 0);
    chm_free(a);
    chm_free(b);
    chm_free(NULL);
    assert_null(chm_alloc_aligned(SIZE_MAX - 3));
    /* more than there is would be granted, and the process ended once it is used */
    chm_available_memory_pretend(1000000000);
    assert_null(chm_alloc(1000000001));
    assert_non_null(strstr(chm_error(), "1000000001 bytes are needed at once, and this machine has 1000000000 free"));
    assert_null(chm_alloc_aligned(1000000001));
    assert_int_equal(chm_failed(CHM_E_DATA), CHM_E_MEMORY);
    void *large = chm_alloc(300000000);
    assert_non_null(large);
    chm_free(large);
    chm_available_memory_pretend(0);
    assert_true(chm_available_memory(true) > 0 && chm_available_memory(false) > 0);
    char *text = chm_format("%s-%d", "a", 7);
    assert_string_equal(text, "a-7");
    chm_free(text);
}

static void arena_grows_and_is_reused(void **state) {
    (void)state;
    chm_arena a;
    chm_arena_init(&a);
    uint8_t *p[200];
    for (int pass = 0; pass < 3; pass++) {
        uint64_t before = chm_alloc_count();
        for (size_t i = 0; i < 200; i++) {
            size_t n = i * 97 % 5000 + (i == 150 ? 1000000 : 0);
            p[i] = chm_arena_take(&a, n);
            assert_non_null(p[i]);
            assert_int_equal((uintptr_t)p[i] % 64, 0);
            memset(p[i], (int)i, n);
        }
        for (size_t i = 0; i < 200; i++) {
            size_t n = i * 97 % 5000 + (i == 150 ? 1000000 : 0);
            for (size_t j = 0; j < n; j++)
                if (p[i][j] != (uint8_t)i) fail_msg("block %zu overwritten at %zu", i, j);
        }
        if (pass) assert_int_equal(chm_alloc_count(), before); /* nothing new once it has grown */
        assert_true(a.used <= a.reserved && a.peak >= a.used);
        chm_arena_reset(&a);
        assert_int_equal(a.used, 0);
    }
    uint8_t *zero = chm_arena_zero(&a, 3000);
    for (int i = 0; i < 3000; i++) assert_int_equal(zero[i], 0);
    /* Larger than any block it has, in the middle of its list. */
    chm_arena_reset(&a);
    assert_non_null(chm_arena_take(&a, 1));
    size_t reserved = a.reserved;
    uint8_t *large = chm_arena_take(&a, 10000000);
    assert_non_null(large);
    memset(large, 1, 10000000);
    assert_true(a.reserved >= reserved + 10000000);
    chm_arena_finish(&a);
    assert_int_equal(a.reserved, 0);

    chm_arena_init(&a);
    a.limit = 1024;
    assert_non_null(chm_arena_take(&a, 900));
    assert_null(chm_arena_take(&a, 100));
    assert_non_null(strstr(chm_error(), "memory limit reached"));
    assert_null(chm_arena_take(&a, SIZE_MAX));
    assert_non_null(chm_arena_take(&a, 64));
    chm_arena_reset(&a);
    assert_non_null(chm_arena_take(&a, 960));
    chm_arena_finish(&a);

    for (long n = 0; n < 2; n++) {
        chm_arena_init(&a);
        chm_alloc_fail_after(n);
        assert_null(chm_arena_take(&a, 100));
        chm_alloc_fail_after(-1);
        assert_non_null(chm_arena_take(&a, 100));
        chm_arena_finish(&a);
    }
}

static void strings_grow(void **state) {
    (void)state;
    chm_string s = {0};
    for (int i = 0; i < 1000; i++) chm_string_add(&s, "%d,", i);
    assert_int_equal(s.length, 3890);
    assert_int_equal(strlen(s.text), s.length);
    chm_string_add_bytes(&s, "a\0b", 3);
    assert_int_equal(s.length, 3893);
    assert_false(s.failed);
    chm_string_finish(&s);
    assert_null(s.text);
    chm_string_add_bytes(&s, "", 0);
    assert_string_equal(s.text, "");
    chm_alloc_fail_after(0);
    for (int i = 0; i < 100; i++) chm_string_add(&s, "text");
    chm_alloc_fail_after(-1);
    assert_true(s.failed);
    assert_int_equal(strlen(s.text), s.length);
    chm_string_finish(&s);
}

/* ---- random numbers ---- */

/* The known answers of Random123 1.14 for philox4x32 with 10 rounds: counter, key, result. */
static void philox_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } answers[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < CHM_ARRAY_COUNT(answers); i++) {
        const uint32_t *c = answers[i].counter, *k = answers[i].key;
        uint32_t out[4];
        chm_philox((uint64_t)k[1] << 32 | k[0], c[3], c[2], (uint64_t)c[1] << 32 | c[0], out);
        assert_memory_equal(out, answers[i].out, sizeof out);
    }
}

static void uniforms_are_uniform(void **state) {
    (void)state;
    enum { N = 200000, BINS = 7 };
    double sum = 0, squares = 0;
    int bins[BINS] = {0};
    for (uint64_t i = 0; i < N; i++) {
        double u = chm_uniform_at(11, CHM_RANDOM_TEST, 3, i);
        assert_true(u > 0 && u < 1);
        sum += u;
        squares += u * u;
        uint64_t below = chm_below_at(11, CHM_RANDOM_TEST, 4, i, BINS);
        assert_true(below < BINS);
        bins[below]++;
    }
    /* six standard deviations */
    assert_true(fabs(sum / N - 0.5) < 6 * sqrt(1.0 / 12 / N));
    assert_true(fabs(squares / N - 1.0 / 3) < 6 * sqrt(4.0 / 45 / N));
    for (int i = 0; i < BINS; i++) assert_true(fabs(bins[i] - (double)N / BINS) < 6 * sqrt((double)N / BINS));
    for (uint64_t i = 0; i < 100; i++) {
        assert_int_equal(chm_below_at(1, CHM_RANDOM_TEST, 0, i, 1), 0);
        assert_true(chm_below_at(1, CHM_RANDOM_TEST, 0, i, UINT64_MAX) < UINT64_MAX);
    }
}

static void normals_are_normal_and_have_positions(void **state) {
    (void)state;
    enum { N = 200001 };
    float *x = chm_alloc(N * sizeof *x), part[5];
    double sums[5] = {0};
    int below_one = 0;
    chm_normals(5, CHM_RANDOM_TEST, 9, N, x);
    for (int i = 0; i < N; i++) {
        for (int k = 1; k < 5; k++) sums[k] += pow(x[i], k);
        below_one += x[i] < 1;
    }
    assert_true(fabs(sums[1] / N) < 6 / sqrt(N));
    assert_true(fabs(sums[2] / N - 1) < 6 * sqrt(2.0 / N));
    assert_true(fabs(sums[3] / N) < 6 * sqrt(15.0 / N));
    assert_true(fabs(sums[4] / N - 3) < 6 * sqrt(96.0 / N));
    assert_true(fabs(below_one / (double)N - 0.841344746) < 6 * sqrt(0.1335 / N));
    chm_normals(5, CHM_RANDOM_TEST, 9, 5, part);
    assert_memory_equal(part, x, sizeof part);
    /* Against the C library's log and cos, in f64 from the same bits; both round to f32 at most one unit apart. */
    for (int i = 0; i < 20000; i += 2) {
        uint32_t r[4];
        chm_philox(5, CHM_RANDOM_TEST, 9, (uint64_t)i / 2, r);
        double u = ((double)(((uint64_t)r[0] << 32 | r[1]) >> 12) + 0.5) * 0x1p-52;
        double v = ((double)(((uint64_t)r[2] << 32 | r[3]) >> 12) + 0.5) * 0x1p-52;
        double radius = sqrt(-2 * log(u)), angle = 2 * acos(-1) * v;
        assert_true(fabs(radius * cos(angle) - x[i]) <= 1.2e-7 * fabs(x[i]) + 1e-15 * radius);
        assert_true(fabs(radius * sin(angle) - x[i + 1]) <= 1.2e-7 * fabs(x[i + 1]) + 1e-15 * radius);
    }
    /* The bytes every machine must get. */
    static const uint32_t first[4] = {0x3d830d77, 0xbf884a49, 0x3f7fe8bc, 0x3ede4e91};
    uint32_t bits[4];
    memcpy(bits, x, sizeof bits);
    assert_memory_equal(bits, first, sizeof bits);
    chm_free(x);
}

static void hashes_are_xxh3(void **state) {
    (void)state;
    /* The published value of XXH3-64 for no bytes and seed 0. */
    assert_true(chm_hash64("", 0) == 0x2d06800538d394c2ull);
    assert_true(chm_hash64("chimera", 7) == chm_hash64_seed("chimera", 7, 0));
    assert_true(chm_hash64("chimera", 7) != chm_hash64("chimerA", 7));
    assert_true(chm_hash64("chimera", 7) != chm_hash64_seed("chimera", 7, 1));
}

/* ---- names ---- */

static void finds_the_nearest_name(void **state) {
    (void)state;
    static const char *const names[] = {"gated_deltanet", "xlstm", "titans", "XM", "gd", "mlp", NULL};
    assert_int_equal(chm_edit_distance("", "abc"), 3);
    assert_int_equal(chm_edit_distance("kitten", "sitting"), 3);
    assert_int_equal(chm_edit_distance("ab", "ba"), 1);
    assert_int_equal(chm_edit_distance("GD", "gd"), 0);
    assert_string_equal(chm_nearest("XN", names), "XM");
    assert_string_equal(chm_nearest("gated_deltnat", names), "gated_deltanet");
    assert_string_equal(chm_nearest("GD", names), "gd");
    assert_string_equal(chm_nearest("mpl", names), "mlp");
    assert_null(chm_nearest("transformer", names));
    assert_null(chm_nearest("q", names));
    assert_null(chm_nearest("", names));
    char longer[1000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    assert_null(chm_nearest(longer, names));
}

/* ---- files ---- */

static char *in_scratch(const char *name) { return chm_format("%s/%s", scratch, name); }

static void put_text(const char *path, const char *text) {
    chm_writer w;
    assert_int_equal(chm_writer_open(&w, path), CHM_OK);
    assert_int_equal(chm_writer_write(&w, text, strlen(text)), CHM_OK);
    assert_int_equal(chm_writer_commit(&w), CHM_OK);
}

static void has_text(const char *path, const char *expected) {
    char *text;
    size_t n;
    assert_int_equal(chm_read_file(path, 1 << 20, &text, &n), CHM_OK);
    assert_int_equal(n, strlen(expected));
    assert_string_equal(text, expected);
    chm_free(text);
}

static int entries_of(const char *path) {
    int n = 0;
    DIR *d = opendir(path);
    assert_non_null(d);
    while (readdir(d)) n++;
    closedir(d);
    return n - 2;
}

static void writes_all_or_nothing(void **state) {
    (void)state;
    chm_writer w;
    char *path = in_scratch("file"), *link = in_scratch("link");
    put_text(path, "old");
    assert_int_equal(chmod(path, 0640), 0);

    /* Neither an unfinished nor an abandoned one is seen. */
    assert_int_equal(chm_writer_open(&w, path), CHM_OK);
    assert_int_equal(chm_writer_write(&w, "new", 3), CHM_OK);
    has_text(path, "old");
    assert_int_equal(entries_of(scratch), 2);
    chm_writer_abandon(&w);
    has_text(path, "old");
    assert_int_equal(entries_of(scratch), 1);

    /* One that cannot be finished: the old file stands, and nothing is left beside it. */
    struct rlimit before, small;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small = before;
    small.rlim_cur = 4096;
    void (*handler)(int) = signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    char block[4096] = {0};
    assert_int_equal(chm_writer_open(&w, path), CHM_OK);
    int status = CHM_OK;
    for (int i = 0; i < 100 && !status; i++) status = chm_writer_write(&w, block, sizeof block);
    int committed = chm_writer_commit(&w);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    signal(SIGXFSZ, handler);
    assert_int_equal(status, CHM_E_DATA);
    assert_int_equal(committed, CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "cannot write"));
    has_text(path, "old");
    assert_int_equal(entries_of(scratch), 1);

    /* Through a link, with the mode the file had. */
    struct stat st;
    assert_int_equal(symlink("file", link), 0);
    put_text(link, "new");
    has_text(path, "new");
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640);
    chm_free(path);
    chm_free(link);
}

/* What a process that was killed left of a file is removed by the next that writes it, and nothing else is. */
static void clears_what_was_left(void **state) {
    (void)state;
    char *folder = in_scratch("left"), *path = in_scratch("left/file"), *link = in_scratch("left/link");
    char *of_dead, *kept[6], *ours;
    int to_child[2], from_child[2];
    pid_t dead = 0, alive = 0;
    char byte;
    chm_writer w;
    assert_int_equal(chm_make_directory(folder), CHM_OK);
    assert_int_equal(pipe(to_child) | pipe(from_child), 0);
    for (int kill_it = 1; kill_it >= 0; kill_it--) {
        const pid_t pid = fork();
        if (pid == 0) { /* amid its file, until it is told to go on or is killed */
            close(to_child[1]);
            if (chm_writer_open(&w, path) || chm_writer_write(&w, "new", 3) || chm_writer_sync(&w)) _exit(1);
            if (write(from_child[1], "x", 1) != 1 || read(to_child[0], &byte, 1) != 1) _exit(1);
            _exit(chm_writer_commit(&w) == CHM_OK ? 0 : 1);
        }
        assert_true(pid > 0);
        assert_int_equal(read(from_child[0], &byte, 1), 1);
        if (kill_it) {
            assert_int_equal(kill(pid, SIGKILL), 0);
            assert_int_equal(waitpid(pid, NULL, 0), pid);
            dead = pid;
        } else {
            alive = pid;
        }
    }
    /* the second that wrote it cleared what the first had left */
    of_dead = chm_format("%s.tmp-%ld", path, (long)dead);
    kept[0] = chm_format("%s.tmp-%ld", path, (long)alive);
    assert_int_equal(access(of_dead, F_OK), -1);
    assert_int_equal(access(kept[0], F_OK), 0);

    /* other names and kinds stay, and one that somebody holds whatever its number says */
    FILE *f = fopen(of_dead, "w");
    assert_non_null(f);
    assert_int_equal(flock(fileno(f), LOCK_EX), 0);
    kept[1] = chm_format("%s.tmp-%ldx", path, (long)dead);
    kept[2] = chm_format("%s.tmp-0%ld", path, (long)dead);
    kept[3] = chm_format("%s.tmp-", path);
    kept[4] = chm_format("%s2.tmp-%ld", path, (long)dead);
    kept[5] = chm_format("%s.tmp-99999999999999999999", path);
    for (size_t i = 1; i < CHM_ARRAY_COUNT(kept); i++) put_text(kept[i], "x");
    put_text(path, "old");
    assert_int_equal(access(of_dead, F_OK), 0);
    fclose(f);
    put_text(link, "of another");
    put_text(path, "old");
    assert_int_equal(access(of_dead, F_OK), -1);
    assert_int_equal(mkdir(of_dead, 0777), 0);
    put_text(path, "old");
    assert_int_equal(rmdir(of_dead), 0);
    assert_int_equal(symlink("link", of_dead), 0);
    put_text(path, "old");
    for (size_t i = 1; i < CHM_ARRAY_COUNT(kept); i++) assert_int_equal(access(kept[i], F_OK), 0);

    /* the one that lives ends as if nobody had been there; alone, what lives is of no matter */
    assert_int_equal(write(to_child[1], "x", 1), 1);
    int ended;
    assert_int_equal(waitpid(alive, &ended, 0), alive);
    assert_true(WIFEXITED(ended) && WEXITSTATUS(ended) == 0);
    has_text(path, "new");
    ours = chm_format("%s.tmp-1", path); /* there always is such a process */
    put_text(ours, "x");
    chm_writer_clear(path, false);
    assert_int_equal(access(ours, F_OK), 0);
    chm_writer_clear(path, true);
    assert_int_equal(access(ours, F_OK), -1);
    assert_int_equal(unlink(of_dead), 0); /* the link */
    has_text(link, "of another");

    /* by a name without a folder */
    char here[4096];
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(folder), 0);
    put_text(of_dead, "x");
    put_text("file", "old");
    assert_int_equal(access(of_dead, F_OK), -1);
    assert_int_equal(chdir(here), 0);
    for (size_t i = 0; i < CHM_ARRAY_COUNT(kept); i++) chm_free(kept[i]);
    chm_free(of_dead);
    chm_free(ours);
    chm_free(folder);
    chm_free(path);
    chm_free(link);
    for (int i = 0; i < 2; i++) {
        close(to_child[i]);
        close(from_child[i]);
    }
}

static void says_why_it_cannot_write(void **state) {
    (void)state;
    chm_writer w;
    char *file = in_scratch("file"), *below = in_scratch("file/below"), *nowhere = in_scratch("no/such/file");
    char *closed = in_scratch("closed"), *inside = in_scratch("closed/file");
    put_text(file, "x");
    assert_int_equal(chm_writer_open(&w, below), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "Not a directory"));
    assert_int_equal(chm_writer_open(&w, nowhere), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "No such file"));
    assert_int_equal(chm_writer_open(&w, scratch), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "is a directory"));
    assert_int_equal(chm_make_directory(closed), CHM_OK);
    assert_int_equal(chmod(closed, 0555), 0);
    if (geteuid() != 0) { /* root may write anywhere but below /proc */
        assert_int_equal(chm_writer_open(&w, inside), CHM_E_DATA);
        assert_non_null(strstr(chm_error(), "Permission denied"));
        assert_int_equal(entries_of(closed), 0);
    }
    assert_int_equal(chm_writer_open(&w, "/proc/chimera"), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "/proc/chimera: cannot write"));
    /* Devices are written to, and stay devices. */
    struct stat st;
    put_text("/dev/null", "x");
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    if (access("/dev/full", W_OK) == 0) {
        assert_int_equal(chm_writer_open(&w, "/dev/full"), CHM_OK);
        assert_int_equal(chm_writer_write(&w, "x", 1), CHM_OK);
        assert_int_equal(chm_writer_commit(&w), CHM_E_DATA);
        assert_non_null(strstr(chm_error(), "No space left"));
    }
    chm_writer_abandon(&w); /* again is fine */
    for (long n = 0; n < 3; n++) {
        chm_alloc_fail_after(n);
        int status = chm_writer_open(&w, file);
        if (!status) chm_writer_abandon(&w);
        chm_alloc_fail_after(-1);
        if (n < 2) assert_int_equal(status, CHM_E_MEMORY);
    }
    has_text(file, "x");
    char *all[] = {file, below, nowhere, closed, inside};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(all); i++) chm_free(all[i]);
}

static void reads_and_maps(void **state) {
    (void)state;
    chm_map m;
    char *path = in_scratch("file"), *empty = in_scratch("empty"), *missing = in_scratch("missing"), *text;
    char *deep = in_scratch("a/b/c"), *blocked = in_scratch("file/b");
    size_t n;
    put_text(path, "12345");
    put_text(empty, "");
    assert_int_equal(chm_map_open(&m, path), CHM_OK);
    assert_int_equal(m.size, 5);
    assert_memory_equal(m.data, "12345", 5);
    chm_map_close(&m);
    chm_map_close(&m);
    assert_int_equal(chm_map_open(&m, empty), CHM_OK);
    assert_null(m.data);
    assert_int_equal(m.size, 0);
    chm_map_close(&m);
    has_text(empty, "");
    assert_int_equal(chm_map_open(&m, missing), CHM_E_DATA);
    assert_int_equal(chm_map_open(&m, scratch), CHM_E_DATA);
    assert_non_null(strstr(chm_error(), "not a regular file"));
    assert_int_equal(chm_read_file(path, 5, &text, &n), CHM_OK);
    chm_free(text);
    assert_int_equal(chm_read_file(path, 4, &text, &n), CHM_E_DATA);
    assert_null(text);
    assert_non_null(strstr(chm_error(), "longer than the 4 bytes"));
    assert_int_equal(chm_read_file(missing, 4, &text, &n), CHM_E_DATA);
    assert_int_equal(chm_read_file(scratch, 4, &text, &n), CHM_E_DATA);
    assert_int_equal(chm_make_directory(deep), CHM_OK);
    assert_int_equal(chm_make_directory(deep), CHM_OK);
    assert_int_equal(chm_make_directory(blocked), CHM_E_DATA);
    assert_int_equal(chm_make_directory(""), CHM_E_DATA);
    char *all[] = {path, empty, missing, deep, blocked};
    for (size_t i = 0; i < CHM_ARRAY_COUNT(all); i++) chm_free(all[i]);
}

/* ---- tables ---- */

static void prints_tables(void **state) {
    (void)state;
    static const struct {
        chm_output format;
        const char *expected;
    } cases[] = {
        {CHM_OUTPUT_TEXT, "tokens  name\n     3  a|b\n 10000  \xc3\xa9, \"x\"\n"},
        {CHM_OUTPUT_CSV, "tokens,name\n3,a|b\n10000,\"\xc3\xa9, \"\"x\"\"\"\n"},
        {CHM_OUTPUT_MD, "| tokens | name |\n|---:|---|\n| 3 | a\\|b |\n| 10000 | \xc3\xa9, \"x\" |\n"},
    };
    chm_table t;
    chm_table_init(&t);
    chm_table_column(&t, "#tokens");
    chm_table_column(&t, "name");
    chm_table_cell(&t, "%d", 3);
    chm_table_cell(&t, "a|b");
    chm_table_cell(&t, "%d", 10000);
    chm_table_cell(&t, "%s", "\xc3\xa9, \"x\"");
    for (size_t i = 0; i < CHM_ARRAY_COUNT(cases); i++) {
        char *text = NULL;
        size_t n;
        FILE *out = open_memstream(&text, &n);
        assert_int_equal(chm_table_print(&t, cases[i].format, out), CHM_OK);
        fclose(out);
        assert_string_equal(text, cases[i].expected);
        free(text);
    }
    chm_table_finish(&t);
}

/* ---- threads ---- */

struct job {
    atomic_int touched[1000];
    atomic_int wrong;
    int64_t count, grain, plain[1000];
    int threads;
};

static void touch(void *arg, int64_t begin, int64_t end, int worker) {
    struct job *job = arg;
    if (worker < 0 || worker >= job->threads || begin % job->grain || end > job->count || end <= begin ||
        end - begin > job->grain)
        atomic_fetch_add(&job->wrong, 1);
    for (int64_t i = begin; i < end; i++) {
        atomic_fetch_add(&job->touched[i], 1);
        job->plain[i] += i; /* plain: a data race here would be the pool's */
    }
}

static void runs_every_piece_once(void **state) {
    (void)state;
    static struct job job;
    for (int threads = 1; threads <= 8; threads++) {
        chm_pool *pool;
        int64_t rounds = 0;
        assert_int_equal(chm_pool_create(threads, &pool), CHM_OK);
        assert_int_equal(chm_pool_threads(pool), threads);
        memset(&job, 0, sizeof job);
        job.threads = threads;
        for (int i = 0; i < 300; i++) {
            static const int64_t counts[] = {0, 1, 2, 7, 64, 1000}, grains[] = {1, 3, 16, 2000};
            job.count = counts[i % 6];
            job.grain = grains[i % 4];
            chm_parallel(pool, job.count, job.grain, touch, &job);
            for (int64_t k = 0; k < job.count; k++) assert_int_equal(atomic_exchange(&job.touched[k], 0), 1);
            if (job.count == 1000) rounds++;
            if (i % 50 == 49) usleep(2000); /* let the workers fall asleep */
        }
        assert_int_equal(atomic_load(&job.wrong), 0);
        assert_true(rounds > 0);
        assert_true(job.plain[999] == rounds * 999);
        chm_pool_destroy(pool);
    }
    job.threads = 1;
    job.count = 10;
    job.grain = 3;
    chm_parallel(NULL, 10, 3, touch, &job);
    for (int k = 0; k < 10; k++) assert_int_equal(atomic_load(&job.touched[k]), 1);
    assert_int_equal(atomic_load(&job.wrong), 0);
    assert_int_equal(chm_pool_threads(NULL), 1);
}

/* Two pieces that wait for each other: they can only end when two threads run them at once. */
static void meet(void *arg, int64_t begin, int64_t end, int worker) {
    (void)begin, (void)end, (void)worker;
    atomic_int *arrived = arg;
    atomic_fetch_add(arrived, 1);
    while (atomic_load(arrived) < 2) sched_yield();
}

static void wakes_sleeping_workers(void **state) {
    (void)state;
    chm_pool *pool;
    assert_int_equal(chm_pool_create(2, &pool), CHM_OK);
    for (int i = 0; i < 50; i++) {
        atomic_int arrived = 0;
        if (i % 2) usleep(1000);
        chm_parallel(pool, 2, 1, meet, &arrived);
        assert_int_equal(atomic_load(&arrived), 2);
    }
    chm_pool_destroy(pool);
}

/* A caller done long before its workers sleeps until they are. */
static void dawdle(void *arg, int64_t begin, int64_t end, int worker) {
    (void)end;
    if (worker) usleep(3000);
    ((int64_t *)arg)[begin] = begin + 1;
}

static void waits_for_slow_workers(void **state) {
    (void)state;
    chm_pool *pool;
    assert_int_equal(chm_pool_create(4, &pool), CHM_OK);
    for (int i = 0; i < 20; i++) {
        int64_t done[16] = {0};
        chm_parallel(pool, 16, 1, dawdle, done);
        for (int k = 0; k < 16; k++) assert_int_equal(done[k], k + 1);
    }
    chm_pool_destroy(pool);
}

static void refuses_pools(void **state) {
    (void)state;
    chm_pool *pool;
    assert_int_equal(chm_pool_create(0, &pool), CHM_E_CONFIG);
    assert_null(pool);
    assert_int_equal(chm_pool_create(257, &pool), CHM_E_CONFIG);
    assert_string_equal(chm_error(), "257 threads: a pool has 1..256");
    for (long n = 0; n < 2; n++) {
        chm_alloc_fail_after(n);
        assert_int_equal(chm_pool_create(3, &pool), CHM_E_MEMORY);
        chm_alloc_fail_after(-1);
    }
    chm_pool_destroy(NULL);
    assert_true(chm_cpu_count() >= 1 && chm_cpu_count() <= 256);
    assert_true(chm_peak_rss() > 100000);
    double before = chm_now();
    assert_true(chm_now() >= before);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_one_sentence_a_thread),
        cmocka_unit_test(fails_when_told_to),
        cmocka_unit_test(arena_grows_and_is_reused),
        cmocka_unit_test(strings_grow),
        cmocka_unit_test(philox_known_answers),
        cmocka_unit_test(uniforms_are_uniform),
        cmocka_unit_test(normals_are_normal_and_have_positions),
        cmocka_unit_test(hashes_are_xxh3),
        cmocka_unit_test(finds_the_nearest_name),
        cmocka_unit_test_setup_teardown(writes_all_or_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(clears_what_was_left, set_up, tear_down),
        cmocka_unit_test_setup_teardown(says_why_it_cannot_write, set_up, tear_down),
        cmocka_unit_test_setup_teardown(reads_and_maps, set_up, tear_down),
        cmocka_unit_test(prints_tables),
        cmocka_unit_test(runs_every_piece_once),
        cmocka_unit_test(wakes_sleeping_workers),
        cmocka_unit_test(waits_for_slow_workers),
        cmocka_unit_test(refuses_pools),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
