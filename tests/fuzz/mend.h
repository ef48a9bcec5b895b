/*
 * mend.h: puts right what guards a safetensors file, so that a mutation of what is inside gets past it: the header's
 * length, where the tensors begin, and hashes.
 */
#ifndef CHM_FUZZ_MEND_H
#define CHM_FUZZ_MEND_H

#include "base/base.h"

#include <inttypes.h>
#include <string.h>

/* The file again with its header as long as its JSON is, and the tensors on 64 bytes. False: there is no header. */
static inline bool mend_header(const uint8_t *data, size_t bytes, chm_string *out) {
    size_t end = 8;
    int depth = 0;
    bool quoted = false;
    if (bytes < 10 || data[8] != '{') return false;
    do {
        const uint8_t c = data[end++];
        if (quoted && c == '\\' && end < bytes)
            end++;
        else if (c == '"')
            quoted = !quoted;
        else if (!quoted)
            depth += (c == '{' || c == '[') - (c == '}' || c == ']');
    } while (depth > 0 && end < bytes);
    size_t from = end;
    while (from < bytes && data[from] == ' ') from++;
    const size_t header = (end + 63) / 64 * 64 - 8;
    uint8_t length[8];
    for (int i = 0; i < 8; i++) length[i] = (uint8_t)((uint64_t)header >> 8 * i);
    chm_string_add_bytes(out, length, sizeof length);
    chm_string_add_bytes(out, data + 8, end - 8);
    while (!out->failed && out->length < 8 + header) chm_string_add_bytes(out, " ", 1);
    chm_string_add_bytes(out, data + from, bytes - from);
    return !out->failed;
}

/* Writes a hash where the header has the string `key` with 16 characters. */
static inline void mend_hash(chm_string *file, const char *key, uint64_t hash) {
    char wanted[200], digits[17];
    const int n = snprintf(wanted, sizeof wanted, "\"%s\":\"", key);
    if (n < 0 || (size_t)n >= sizeof wanted) return;
    char *at = memmem(file->text, file->length, wanted, (size_t)n);
    if (!at || (size_t)(file->text + file->length - at) < (size_t)n + 17 || at[n + 16] != '"') return;
    snprintf(digits, sizeof digits, "%016" PRIx64, hash);
    memcpy(at + n, digits, 16);
}

#endif
