/*
 * test_abi.c: no struct between host and plugins changes its shape under one ABI number. tests/abi/N.txt has the sizes
 * and offsets of ABI N, as 64-bit machines lay them out; it is written once (test_abi --print) and never changed.
 */
#include <chimera/plugin.h>

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <setjmp.h>
#include <cmocka.h>

#define STRUCT_OF(name) struct name
#define STRUCT(s)       {#s, NULL, sizeof(STRUCT_OF(s))},
#define MEMBER(s, m)    {#s, #m, offsetof(STRUCT_OF(s), m)},
static const struct line {
    const char *name, *member; /* member NULL: the size of the whole */
    size_t value;
} lines[] = {
#include "abi_members.h"
};
enum { LINES = sizeof lines / sizeof lines[0] };

static void print_line(const struct line *l, char *text, size_t n) {
    snprintf(text, n, l->member ? "%s.%s %zu\n" : "%s%s %zu\n", l->name, l->member ? l->member : "", l->value);
}

static void print_all(FILE *out) {
    char text[160];
    fprintf(out,
            "# ABI %u: size of each struct, then the offset of each member. Never changed: a change is another ABI.\n",
            CHM_ABI);
    for (size_t i = 0; i < LINES; i++) {
        print_line(&lines[i], text, sizeof text);
        fputs(text, out);
    }
}

static FILE *open_source(const char *path) {
    char whole[4096];
    snprintf(whole, sizeof whole, "%s/%s", getenv("CHM_SOURCE_ROOT"), path);
    FILE *f = fopen(whole, "r");
    return f;
}

static void keeps_its_shape(void **state) {
    (void)state;
    char path[64], stated[256], found[256];
    if (sizeof(void *) != 8) skip();
    snprintf(path, sizeof path, "tests/abi/%u.txt", CHM_ABI);
    FILE *f = open_source(path);
    if (!f) fail_msg("there is no %s: run test_abi --print > %s, once", path, path);
    size_t at = 0, wrong = 0;
    while (fgets(stated, sizeof stated, f)) {
        if (stated[0] == '#') continue;
        char name[128];
        size_t value = 0;
        assert_int_equal(sscanf(stated, "%127s %zu", name, &value), 2);
        /* members that took the place of reserved ones are in the list and not in the file */
        bool same = false;
        while (at < LINES && !same) {
            print_line(&lines[at], found, sizeof found);
            const size_t n = strcspn(found, " ");
            if (strlen(name) == n && memcmp(name, found, n) == 0) {
                same = true;
                if (lines[at].value != value) {
                    wrong++;
                    print_error("%s is %zu, and was %zu in ABI %u: raise CHM_ABI, or use reserved members\n", name,
                                lines[at].value, value, CHM_ABI);
                }
            }
            at++;
        }
        if (!same) fail_msg("%s of ABI %u is gone: raise CHM_ABI", name, CHM_ABI);
    }
    fclose(f);
    assert_int_equal(wrong, 0);
}

/* Counts the members a header gives each struct, to see that abi_members.h forgets none. */
static size_t members_in_header(const char *header, const char *name) {
    char want[128], text[1 << 10];
    size_t count = 0, depth = 0, parentheses = 0;
    bool inside = false, comment = false, reserved = false;
    FILE *f = open_source(header);
    assert_non_null(f);
    snprintf(want, sizeof want, "struct %s {", name);
    while (fgets(text, sizeof text, f)) {
        if (!inside && strstr(text, want) && text[0] != ' ') {
            inside = true;
            depth = 1;
            continue;
        }
        if (!inside) continue;
        char word[80] = "";
        size_t n = 0;
        for (const char *c = text; *c && depth > 0; c++) {
            if (comment) {
                if (c[0] == '*' && c[1] == '/') comment = false, c++;
                continue;
            }
            if (c[0] == '/' && c[1] == '*') {
                comment = true;
                c++;
                continue;
            }
            if (isalnum((unsigned char)*c) || *c == '_') {
                if (n + 1 < sizeof word) word[n++] = *c, word[n] = 0;
                if (strcmp(word, "reserved") == 0) reserved = true;
                continue;
            }
            n = 0;
            if (*c == '(') parentheses++;
            if (*c == ')') parentheses--;
            if (*c == '}') depth--;
            if (*c == ';' || (*c == ',' && parentheses == 0)) {
                count += !reserved;
                reserved = false;
            }
        }
        if (depth == 0) break;
    }
    fclose(f);
    return count;
}

static void lists_every_member(void **state) {
    (void)state;
    static const char *const headers[] = {"include/chimera/tensor.h", "include/chimera/plugin.h"};
    char text[1 << 10];
    size_t structs = 0;
    for (size_t h = 0; h < 2; h++) {
        FILE *f = open_source(headers[h]);
        assert_non_null(f);
        while (fgets(text, sizeof text, f)) {
            char name[80];
            if (sscanf(text, "struct %79s {", name) != 1 && sscanf(text, "typedef struct %79s {", name) != 1) continue;
            if (!strchr(text, '{')) continue;
            structs++;
            size_t listed = 0, known = 0;
            for (size_t i = 0; i < LINES; i++) {
                if (strcmp(lines[i].name, name) != 0) continue;
                known++;
                listed += lines[i].member != NULL;
            }
            const size_t found = members_in_header(headers[h], name);
            if (known == 0) fail_msg("struct %s is not in tests/abi_members.h", name);
            if (listed != found)
                fail_msg("struct %s has %zu members, tests/abi_members.h lists %zu", name, found, listed);
        }
        fclose(f);
    }
    assert_true(structs > 20);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--print") == 0) {
        print_all(stdout);
        return 0;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(keeps_its_shape),
        cmocka_unit_test(lists_every_member),
    };
    return cmocka_run_group_tests_name("abi", tests, NULL, NULL);
}
