/*
 * registry.h: finding, checking and holding plugins; options; the kernel table of this machine.
 */
#ifndef CHM_REGISTRY_H
#define CHM_REGISTRY_H

#include "base/base.h"

/* What the search met, in order: one entry a directory tried and one a file looked at. */
struct chm_plugin_file {
    char *path;
    const struct chm_plugin *plugin; /* NULL when refused */
    char *refused;                   /* why, one sentence; NULL when loaded */
    bool is_directory;
    const char *origin; /* "--plugin-path", "CHIMERA_PLUGIN_PATH", "build tree", "install directory", "built in" */
    void *handle;
};

typedef struct chm_registry {
    struct chm_plugin_file *files;
    size_t file_count;
    uint64_t cpu;       /* features of this CPU (less those masked) */
    uint64_t cpu_avoid; /* of them, those it does badly: a backend that needs one comes after the others */
    int (*check_section)(const char *section, enum chm_kind kind); /* as in the options */
} chm_registry;

struct chm_registry_options {
    const char *plugin_path; /* colon-separated; NULL: none. Searched first */
    uint64_t cpu_mask;       /* features to pretend are missing, besides those CHIMERA_CPU_MASK names */
    /* CHM_OK, or the reason why a plugin of this kind cannot have this section of a card; NULL: it can */
    int (*check_section)(const char *section, enum chm_kind kind);
};

/* Searches --plugin-path, CHIMERA_PLUGIN_PATH, the build tree (when this library runs from it), the install directory;
 * never the current directory. A name found twice: the first stands, the second is refused by name. One bad file never
 * fails the whole; it is listed with its reason. */
int chm_registry_init(chm_registry *r, const struct chm_registry_options *options);
void chm_registry_finish(chm_registry *r);

/* Plugins that are only built where a library is, and what to install for them; the last has no name. */
extern const struct chm_optional_plugin {
    enum chm_kind kind;
    const char *name, *needs;
} chm_optional_plugins[];

/* By name or alias, case-sensitive. NULL and a sentence with the nearest name when there is none. */
const struct chm_plugin *chm_registry_find(const chm_registry *r, enum chm_kind kind, const char *name);
/* A plugin of any kind but this that answers to the name, for the sentence that says so; NULL (no sentence): none. */
const struct chm_plugin *chm_registry_other_kind(const chm_registry *r, enum chm_kind kind, const char *name);
/* The i-th loaded plugin of a kind (0: any), in search order; NULL past the end. */
const struct chm_plugin *chm_registry_at(const chm_registry *r, enum chm_kind kind, size_t i);
/* May one more plugin have this section? */
int chm_registry_check_section(const chm_registry *r, const char *section, enum chm_kind kind);
/* The plugin whose card section this is, or NULL (no sentence). */
const struct chm_plugin *chm_registry_section(const chm_registry *r, const char *section);
const char *chm_kind_name(enum chm_kind kind); /* "layer" */
const char *chm_kind_one(enum chm_kind kind);  /* "a layer" */
/* The path it came from, or "built in". */
const char *chm_registry_path(const chm_registry *r, const struct chm_plugin *plugin);

/* CPU features of this machine, checked with the OS's support for the registers; and their names. */
uint64_t chm_cpu_features(void);
/* "avx2 fma f16c" into text (at most n bytes) */
void chm_cpu_names(uint64_t features, char *text, size_t n);
/* The features that `text` names, as above, commas or spaces between them, or "all"; with each go those that need it
 * ("avx512" takes avx512_vnni along). An unknown name is CHM_E_CONFIG with the nearest. A mask only removes. */
int chm_cpu_mask(const char *text, uint64_t *mask);

typedef struct chm_cpu_identity {
    char vendor[13]; /* "AuthenticAMD"; empty where this program cannot ask */
    uint32_t family, model, stepping;
} chm_cpu_identity;
typedef struct chm_cpu_weakness {
    uint64_t avoid;       /* features to leave alone where there is a choice; 0: only told */
    const char *sentence; /* for `chimera doctor` */
} chm_cpu_weakness;
void chm_cpu_identify(chm_cpu_identity *out);
/* The i-th thing that this CPU has and does badly; false past the last. */
bool chm_cpu_weakness_at(const chm_cpu_identity *cpu, size_t i, chm_cpu_weakness *out);

/* ---- kernels ---- */
enum { CHM_MAX_SLOTS = 40 };
typedef struct chm_kernel_choice {
    struct chm_kernels kernels;
    size_t slots;
    const char *slot[CHM_MAX_SLOTS];    /* "t2_matmul" */
    const char *backend[CHM_MAX_SLOTS]; /* "avx2", or the name of its level: "avx512_vnni" */
    bool exact[CHM_MAX_SLOTS];
    int32_t rank[CHM_MAX_SLOTS]; /* of the backend */
} chm_kernel_choice;
/* Every slot from the highest ranked backend this CPU can run, those that need what it does badly last but scalar; of
 * a backend's levels the first that has the slot and that the CPU can run. `force` (or CHIMERA_BACKEND when NULL) names
 * one backend, whose empty slots fall to scalar (training slots also to openblas when force is not "scalar"); with
 * `require` an empty exact slot is an error instead. */
int chm_kernels_choose(const chm_registry *r, const char *force, bool require, chm_kernel_choice *out);

/* ---- options ---- */
/* One option's text (JSON spelling, or bare words for strings) checked and stored at base + offset (base NULL: only
 * checked). Lists and strings are allocated from `arena`. On failure the sentence says option, value, accepted set. */
int chm_option_parse(const struct chm_option *o, const char *text, void *base, chm_arena *arena);
int chm_option_defaults(const struct chm_option *table, uint32_t count, void *base, chm_arena *arena);
const struct chm_option *chm_option_find(const struct chm_option *table, uint32_t count, const char *name);
/* "integer 1..4096", "one of a, b", "list of 2 integers" */
void chm_option_accepts(const struct chm_option *o, char *text, size_t n);
/* "4096", "4k" no; "4M" = 4e6, "2T" = 2e12, "1B" = 1e9, "350M": decimal multipliers as the card writes them */
int chm_parse_count(const char *text, int64_t *out);

#endif
