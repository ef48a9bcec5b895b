#include "graph/graph.h"
#include <string.h>

size_t chm_dtype_bytes(enum chm_dtype type) { return type == CHM_F32 ? 4 : 8; }

int chm_stream_init(chm_stream_state *s, const chm_state_layout *layout) {
    memset(s, 0, sizeof *s);
    s->layout = layout;
    s->blob = chm_alloc_aligned(layout->bytes ? layout->bytes : 64);
    return s->blob ? CHM_OK : CHM_E_MEMORY;
}

void chm_stream_finish(chm_stream_state *s) {
    chm_free(s->blob);
    memset(s, 0, sizeof *s);
}

void chm_stream_reset(chm_stream_state *s) {
    memset(s->blob, 0, s->layout->bytes);
    s->position = 0;
}

void chm_stream_copy(chm_stream_state *to, const chm_stream_state *from) {
    memcpy(to->blob, from->blob, from->layout->bytes);
    to->position = from->position;
}
