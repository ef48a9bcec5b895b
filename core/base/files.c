/* files.c: reading whole files, mapping them, and writing them so that a reader sees the old one or the new one. */
#include "base/base.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- reading ---- */

int chm_map_descriptor(chm_map *m, int fd, const char *name) {
    struct stat st;
    memset(m, 0, sizeof *m);
    if (fstat(fd, &st)) return chm_fail_system("%s: cannot stat", name);
    if (!S_ISREG(st.st_mode)) return chm_fail(CHM_E_DATA, "%s: not a regular file", name);
    if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) return chm_fail_system("%s: cannot map %lld bytes", name, (long long)st.st_size);
        /* Where the system can: pages of megabytes, which a stream of weights crosses less often. What is in its cache
         * in small pages already stays in those. No is an answer. */
        if (st.st_size >= CHM_HUGE_FROM) madvise(p, (size_t)st.st_size, MADV_HUGEPAGE);
        m->mapping = p;
        m->data = p;
        m->size = (uint64_t)st.st_size;
    }
    return CHM_OK;
}

int chm_map_open(chm_map *m, const char *path) {
    memset(m, 0, sizeof *m);
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return chm_fail_system("%s: cannot open", path);
    const int status = chm_map_descriptor(m, fd, path);
    close(fd);
    return status;
}

void chm_map_close(chm_map *m) {
    if (m->mapping) munmap(m->mapping, (size_t)m->size);
    memset(m, 0, sizeof *m);
}

int chm_read_file(const char *path, uint64_t limit, char **text, size_t *size) {
    int status = CHM_OK;
    chm_string s = {0};
    *text = NULL;
    *size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return chm_fail_system("%s: cannot open", path);
    for (;;) {
        char buffer[16384];
        ssize_t n = read(fd, buffer, sizeof buffer);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) {
            status = chm_fail_system("%s: cannot read", path);
            goto out;
        }
        if ((uint64_t)n > limit - s.length) {
            status = chm_fail(CHM_E_DATA, "%s: longer than the %llu bytes such a file may have", path,
                              (unsigned long long)limit);
            goto out;
        }
        chm_string_add_bytes(&s, buffer, (size_t)n);
        if (s.failed) {
            status = chm_fail_prefix(CHM_E_MEMORY, "%s", path);
            goto out;
        }
        if (n == 0) break;
    }
    *text = s.text;
    *size = s.length;
    s.text = NULL;
out:
    close(fd);
    chm_string_finish(&s);
    return status;
}

/* ---- writing ---- */

#define TEMPORARY ".tmp-"

/* The process that `name` says is writing `base`, or 0: it is no such name. */
static long writer_of(const char *name, const char *base) {
    const size_t n = strlen(base), tail = sizeof TEMPORARY - 1;
    char *end;
    if (strncmp(name, base, n) != 0 || strncmp(name + n, TEMPORARY, tail) != 0) return 0;
    if (name[n + tail] < '1' || name[n + tail] > '9') return 0;
    const long pid = strtol(name + n + tail, &end, 10);
    return *end || pid > INT_MAX ? 0 : pid;
}

/* Is nobody writing that file? A number says little where processes of another machine or container write too, so
 * that the file is not locked must be seen as well; where that cannot be seen it stays. */
static bool abandoned(int directory, const char *name, long pid) {
    if (kill((pid_t)pid, 0) == 0 || errno != ESRCH) return false;
    const int fd = openat(directory, name, O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    const bool unlocked = fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0;
    if (fd >= 0) close(fd);
    return unlocked;
}

void chm_writer_clear(const char *path, bool alone) {
    char folder[PATH_MAX];
    const char *slash = strrchr(path, '/'), *base = slash ? slash + 1 : path;
    const int n = snprintf(folder, sizeof folder, "%.*s", (int)(base - path), path);
    if (n < 0 || (size_t)n >= sizeof folder) return;
    DIR *directory = opendir(n ? folder : ".");
    struct dirent *entry;
    struct stat st;
    while (directory && (entry = readdir(directory))) {
        const long pid = writer_of(entry->d_name, base);
        if (pid == 0 || fstatat(dirfd(directory), entry->d_name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISREG(st.st_mode))
            continue;
        if (alone || abandoned(dirfd(directory), entry->d_name, pid)) unlinkat(dirfd(directory), entry->d_name, 0);
    }
    if (directory) closedir(directory);
}

int chm_writer_open(chm_writer *w, const char *path) {
    struct stat st;
    int fd = -1, status = CHM_OK;
    memset(w, 0, sizeof *w);
    bool exists = stat(path, &st) == 0;
    if (exists && S_ISDIR(st.st_mode)) return chm_fail(CHM_E_DATA, "%s: is a directory, not a file to write", path);
    /* Through symbolic links: the file is replaced, not the link to it. */
    char real[PATH_MAX];
    w->path = chm_strdup(exists && S_ISREG(st.st_mode) && realpath(path, real) ? real : path);
    if (!w->path) return CHM_E_MEMORY;
    /* A device or a pipe (/dev/stdout, /dev/null) is written to and never replaced. */
    bool direct = exists && !S_ISREG(st.st_mode);
    if (!direct) {
        chm_writer_clear(w->path, false);
        w->temporary = chm_format("%s" TEMPORARY "%ld", w->path, (long)getpid());
        if (!w->temporary) {
            status = CHM_E_MEMORY;
            goto failed;
        }
    }
    const char *name = direct ? w->path : w->temporary;
    fd = open(name, direct ? O_WRONLY | O_CLOEXEC : O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
    if (fd < 0) {
        status = chm_fail_system("%s: cannot write", path);
        chm_free(w->temporary);
        w->temporary = NULL; /* not ours to remove */
        goto failed;
    }
    if (!direct) (void)!flock(fd, LOCK_EX | LOCK_NB); /* as long as it is open: abandoned() */
    if (!direct && exists) (void)!fchmod(fd, st.st_mode & 07777);
    w->file = fdopen(fd, "wb");
    if (!w->file) {
        status = chm_fail_system("%s: cannot write", path);
        close(fd);
        goto failed;
    }
    return CHM_OK;
failed:
    chm_writer_abandon(w);
    return status;
}

int chm_writer_write(chm_writer *w, const void *data, size_t bytes) {
    if (bytes && fwrite(data, 1, bytes, w->file) != bytes) return chm_fail_system("%s: cannot write", w->path);
    return CHM_OK;
}

/* The name itself is safe only once its directory is. Not every file system can, so failure here is not one. */
static void sync_directory(const char *path) {
    const char *slash = strrchr(path, '/');
    char *directory = !slash          ? chm_strdup(".")
                      : slash == path ? chm_strdup("/")
                                      : chm_format("%.*s", (int)(slash - path), path);
    if (!directory) return;
    int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd >= 0) {
        (void)!fsync(fd);
        close(fd);
    }
    chm_free(directory);
}

int chm_writer_sync(chm_writer *w) {
    if (fflush(w->file) || (w->temporary && fsync(fileno(w->file))))
        return chm_fail(CHM_E_DATA, "%s: cannot write: %s", w->path, strerror(errno));
    return CHM_OK;
}

int chm_writer_commit(chm_writer *w) {
    int status = CHM_OK;
    bool bad = ferror(w->file) != 0;
    if (fflush(w->file)) bad = true;
    if (!bad && w->temporary && fsync(fileno(w->file))) bad = true;
    int error = bad ? errno : 0;
    /* What was written lies in the system's cache in small pages. Left there, a large file would be mapped in those
     * from now on; dropped, it is read back in large ones (chm_map_open), and weights stream a tenth to a fifth faster.
     */
    if (!bad && w->temporary && ftello(w->file) >= CHM_HUGE_FROM)
        (void)posix_fadvise(fileno(w->file), 0, 0, POSIX_FADV_DONTNEED);
    if (fclose(w->file) && !bad) {
        bad = true;
        error = errno;
    }
    w->file = NULL;
    if (!bad && w->temporary && rename(w->temporary, w->path)) {
        bad = true;
        error = errno;
    }
    if (bad) {
        errno = error;
        status = chm_fail_system("%s: cannot write", w->path);
    } else if (w->temporary) {
        sync_directory(w->path);
        chm_free(w->temporary);
        w->temporary = NULL;
    }
    chm_writer_abandon(w);
    return status;
}

int chm_write_file(const char *path, const void *data, size_t bytes) {
    chm_writer w;
    int status = chm_writer_open(&w, path);
    if (status) return status;
    status = chm_writer_write(&w, data, bytes);
    if (!status) return chm_writer_commit(&w);
    chm_writer_abandon(&w);
    return status;
}

void chm_writer_abandon(chm_writer *w) {
    if (w->file) fclose(w->file);
    if (w->temporary) unlink(w->temporary);
    chm_free(w->temporary);
    chm_free(w->path);
    memset(w, 0, sizeof *w);
}

int chm_make_directory(const char *path) {
    int status = CHM_OK;
    struct stat st;
    char *copy = chm_strdup(path);
    if (!copy) return CHM_E_MEMORY;
    size_t n = strlen(copy);
    for (size_t i = 1; i <= n; i++) {
        if (copy[i] != '/' && copy[i] != 0) continue;
        char kept = copy[i];
        copy[i] = 0;
        if (mkdir(copy, 0777)) {
            int error = errno;
            if (stat(copy, &st) != 0) {
                status = chm_fail(CHM_E_DATA, "%s: cannot make directory %s: %s", path, copy, strerror(error));
                goto out;
            }
            if (!S_ISDIR(st.st_mode)) {
                status = chm_fail(CHM_E_DATA, "%s: cannot make directory: %s is a file", path, copy);
                goto out;
            }
        }
        copy[i] = kept;
    }
    if (n == 0) status = chm_fail(CHM_E_DATA, "cannot make a directory without a name");
out:
    chm_free(copy);
    return status;
}

bool chm_same_file(const char *a, const char *b) {
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}
