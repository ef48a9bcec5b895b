/* contents.c: the bytes of one file, unpacked where it is a .zst. */
#include "train/data.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef CHM_HAVE_ZSTD
#include <zstd.h>
#include <zstd_errors.h>
#endif

enum { BLOCK = 1 << 17 }; /* of a packed file, read at once */

static bool ends_with(const char *path, size_t n, const char *ending) {
    const size_t m = strlen(ending);
    return n > m && strncmp(path + n - m, ending, m) == 0;
}

static bool is_packed(const char *path) { return ends_with(path, strlen(path), ".zst"); }

bool chm_contents_are_objects(const char *path) {
    return ends_with(path, strlen(path) - (is_packed(path) ? strlen(".zst") : 0), ".jsonl");
}

static int open_packed(chm_contents *in) {
#ifdef CHM_HAVE_ZSTD
    in->block = chm_alloc(BLOCK);
    if (in->block == NULL) return CHM_E_MEMORY;
    in->unpacker = ZSTD_createDCtx();
    return in->unpacker != NULL ? CHM_OK : chm_fail(CHM_E_MEMORY, "%s: out of memory for unpacking it", in->path);
#else
    return chm_fail(CHM_E_DATA,
                    "%s: this build cannot unpack .zst, since libzstd was not there when it was built: unpack the file "
                    "(zstd -d), or install libzstd-dev and build again",
                    in->path);
#endif
}

int chm_contents_open(chm_contents *in, const char *path, bool hashed) {
    struct stat st;
    int status = CHM_OK;
    memset(in, 0, sizeof *in);
    in->path = path;
    /* NONBLOCK: a pipe must be refused below, not waited for */
    in->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (in->fd < 0) {
        in->path = NULL;
        return chm_fail_system("%s: cannot open", path);
    }
    const bool packed = is_packed(path);
    in->objects = chm_contents_are_objects(path);
    if (fstat(in->fd, &st) != 0)
        status = chm_fail_system("%s: cannot stat", path);
    else if (S_ISDIR(st.st_mode))
        status = chm_fail(CHM_E_DATA, "%s: is a directory; name the files of text in it", path);
    else if (!S_ISREG(st.st_mode))
        status = chm_fail(CHM_E_DATA, "%s: not a regular file; text is read from files", path);
    else if (st.st_size == 0)
        status = chm_fail(CHM_E_DATA, "%s: is empty; a file of text has at least one byte", path);
    else if (hashed && (in->hasher = chm_hasher_create()) == NULL)
        status = CHM_E_MEMORY;
    else if (packed)
        status = open_packed(in);
    if (status != CHM_OK) {
        chm_contents_close(in);
        return status;
    }
    in->file_bytes = st.st_size;
    return CHM_OK;
}

void chm_contents_close(chm_contents *in) {
    if (in->path != NULL) close(in->fd);
#ifdef CHM_HAVE_ZSTD
    ZSTD_freeDCtx(in->unpacker);
#endif
    chm_free(in->block);
    chm_free(in->hasher);
    memset(in, 0, sizeof *in);
}

/* Up to n bytes of the file as it is on disk, fewer only at its end; < 0: chm_error(). */
static int64_t read_file(chm_contents *in, void *to, size_t n) {
    size_t done = 0;
    while (done < n && in->file_read < in->file_bytes) {
        const size_t want = (size_t)CHM_MIN((int64_t)(n - done), in->file_bytes - in->file_read);
        const ssize_t got = read(in->fd, (uint8_t *)to + done, want);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) {
            chm_fail_system("%s: cannot read", in->path);
            return -1;
        }
        if (got == 0) {
            chm_fail(CHM_E_DATA, "%s: ended at byte %lld of %lld: it became shorter while it was read", in->path,
                     (long long)in->file_read, (long long)in->file_bytes);
            return -1;
        }
        done += (size_t)got;
        in->file_read += got;
    }
    return (int64_t)done;
}

#ifdef CHM_HAVE_ZSTD
static int64_t unpack(chm_contents *in, void *to, size_t n) {
    ZSTD_outBuffer out = {to, n, 0};
    while (out.pos < n) {
        if (in->first == in->held) {
            const int64_t got = read_file(in, in->block, BLOCK);
            if (got < 0) return -1;
            in->first = 0;
            in->held = (size_t)got;
            if (got == 0 && !in->within) break;
        }
        const size_t before = out.pos;
        ZSTD_inBuffer more = {in->block + in->first, in->held - in->first, 0};
        const size_t left = ZSTD_decompressStream(in->unpacker, &out, &more);
        if (ZSTD_isError(left)) {
            if (ZSTD_getErrorCode(left) == ZSTD_error_memory_allocation)
                chm_fail(CHM_E_MEMORY, "%s: out of memory for unpacking it", in->path);
            else
                chm_fail(CHM_E_DATA, "%s: cannot be unpacked (zstd: %s); pack the text anew", in->path,
                         ZSTD_getErrorName(left));
            return -1;
        }
        if (more.size == 0 && out.pos == before) {
            chm_fail(CHM_E_DATA, "%s: ends in the middle of what was packed; the file was cut short", in->path);
            return -1;
        }
        in->first += more.pos;
        in->within = left != 0;
    }
    return (int64_t)out.pos;
}
#endif

int64_t chm_contents_read(chm_contents *in, void *to, size_t n) {
#ifdef CHM_HAVE_ZSTD
    const int64_t got = in->unpacker != NULL ? unpack(in, to, n) : read_file(in, to, n);
#else
    const int64_t got = read_file(in, to, n);
#endif
    if (got > 0) {
        in->bytes += got;
        if (in->hasher != NULL) chm_hasher_add(in->hasher, to, (size_t)got);
    }
    return got;
}

uint64_t chm_contents_hash(const chm_contents *in) { return chm_hasher_end(in->hasher); }
