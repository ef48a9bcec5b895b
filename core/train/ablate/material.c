/* material.c: what cells read: files as they are, the two parts of a file, or synthetic tasks. */
#include "train/ablate/ablate.h"

#include <string.h>
#include <unistd.h>

static const char *format_in(chm_arena *arena, const char *format, ...) CHM_PRINTF(2, 3);
static const char *format_in(chm_arena *arena, const char *format, ...) {
    char text[256];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    char *kept = chm_arena_take(arena, strlen(text) + 1);
    if (kept != NULL) strcpy(kept, text);
    return kept;
}

int chm_material_look(const char *path, int64_t *bytes, uint64_t *hash) {
    chm_map map;
    const int status = chm_map_open(&map, path);
    if (status != CHM_OK) return status;
    *bytes = (int64_t)map.size;
    *hash = chm_hash64(map.data, map.size);
    chm_map_close(&map);
    return CHM_OK;
}

/* Refuses what a task cannot be: asked of the code that writes it. */
static int check_task(const chm_study_task *t) {
    chm_task_options o = t->options;
    o.out = "/dev/null";
    o.documents = 1;
    const int status = chm_task_write(&o);
    return status == CHM_OK ? CHM_OK : chm_fail_prefix(status, "%s", t->place);
}

int chm_material_plan(chm_plan *p) {
    const chm_study *s = &p->study;
    const int data = s->tasks > 0 ? s->tasks : s->data_count;
    const int score = s->tasks > 0 ? s->scores : s->held_out > 0 ? s->data_count : s->validation_count;
    p->data = chm_arena_zero(&p->arena, (size_t)data * sizeof *p->data);
    p->score = chm_arena_zero(&p->arena, (size_t)score * sizeof *p->score);
    if (p->data == NULL || p->score == NULL) return CHM_E_MEMORY;
    for (int i = 0; i < data; i++) {
        chm_material *m = &p->data[p->data_count++];
        m->name = "";
        if (s->tasks > 0) {
            const int status = check_task(&s->task[i]);
            if (status != CHM_OK) return status;
            m->task = &s->task[i];
        }
        if (s->held_out > 0) m->whole = s->data[i];
        m->path = m->task || m->whole ? format_in(&p->arena, "data/train-%d.txt", i + 1) : s->data[i];
        if (m->path == NULL) return CHM_E_MEMORY;
    }
    for (int i = 0; i < score; i++) {
        chm_material *m = &p->score[p->score_count++];
        m->name = s->tasks > 0 ? s->score[i].name : "held-out";
        if (s->tasks > 0) {
            const int status = check_task(&s->score[i]);
            if (status != CHM_OK) return status;
            m->task = &s->score[i];
            m->path = format_in(&p->arena, "data/score-%s.txt", m->name);
        } else if (s->held_out > 0) {
            m->whole = s->data[i];
            m->path = format_in(&p->arena, "data/held-out-%d.txt", i + 1);
        } else {
            m->path = s->validation[i];
        }
        if (m->path == NULL) return CHM_E_MEMORY;
    }
    return CHM_OK;
}

/* Where a text is cut: behind a line's end near by, else before a character. */
static uint64_t cut_of(const chm_map *map, double held_out) {
    enum { NEAR = 4096 };
    const uint64_t wanted = map->size - (uint64_t)((double)map->size * held_out);
    for (uint64_t i = wanted; i < map->size && i < wanted + NEAR; i++)
        if (i > 0 && map->data[i - 1] == '\n') return i;
    uint64_t cut = wanted;
    while (cut > 0 && cut < map->size && (map->data[cut] & 0xc0) == 0x80) cut--;
    return cut;
}

static int make(const chm_plan *p, const chm_material *m, const char *path) {
    if (m->task != NULL) {
        chm_task_options o = m->task->options;
        o.out = path;
        o.stop = p->options->stop;
        return chm_task_write(&o);
    }
    chm_map map;
    int status = chm_map_open(&map, m->whole);
    if (status != CHM_OK) return status;
    const uint64_t cut = cut_of(&map, p->study.held_out);
    if (cut == 0 || cut >= map.size)
        status = chm_fail(CHM_E_DATA, "%s: %llu bytes are too few to hold a part of them out; give a longer text",
                          m->whole, (unsigned long long)map.size);
    else if (m->name[0])
        status = chm_write_file(path, map.data + cut, map.size - cut);
    else
        status = chm_write_file(path, map.data, cut);
    chm_map_close(&map);
    return status;
}

/* Answers need all of their document: chm_train() would refuse the longer ones, after other cells have run. */
static int check_lines(const chm_plan *p, const chm_material *m, const char *path) {
    chm_map map;
    int status = chm_map_open(&map, path);
    int64_t longest = 0, length = 1; /* the end-of-text mark */
    if (status != CHM_OK) return status;
    for (uint64_t i = 0; i < map.size; i++) {
        length = map.data[i] == '\n' ? 1 : length + 1;
        longest = CHM_MAX(longest, length);
    }
    chm_map_close(&map);
    if (longest <= p->run_tokens) return CHM_OK;
    return chm_fail(CHM_E_CONFIG,
                    "%s: a document makes %lld tokens, and answers need all of it within seq_len x carry_segments = "
                    "%lld: set training.phases.pretrain.seq_len = %lld in [card]",
                    m->task->place, (long long)longest, (long long)p->run_tokens, (long long)longest);
}

int chm_material_make(chm_plan *p, bool keep) {
    chm_material *const list[] = {p->data, p->score};
    const int count[] = {p->data_count, p->score_count};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < count[k]; i++) {
            chm_material *m = &list[k][i];
            const bool made = m->task != NULL || m->whole != NULL;
            char *path = made ? chm_format("%s/%s", p->directory, m->path) : chm_strdup(m->path);
            int status = path == NULL ? CHM_E_MEMORY : CHM_OK;
            if (status == CHM_OK && made && (!keep || access(path, F_OK) != 0)) status = make(p, m, path);
            if (status == CHM_OK) status = chm_material_look(path, &m->bytes, &m->hash);
            if (status == CHM_OK && m->task != NULL && k == 0) status = check_lines(p, m, path);
            chm_free(path);
            if (status != CHM_OK) return status;
        }
    return CHM_OK;
}
