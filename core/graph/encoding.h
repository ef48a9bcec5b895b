/* encoding.h: ternary codes from one encoding to another (struct chm_ternary says what they are), one row, one count.
 */
#ifndef CHM_ENCODING_H
#define CHM_ENCODING_H

#include "base/base.h"

#include <chimera/plugin.h>

const char *chm_encoding_name(int32_t encoding);       /* "t2" */
int32_t chm_encoding_find(const char *name, size_t n); /* of the first n bytes; -1: none is called so */

/* Where a matrix cannot take a form: the row and the first of four inputs of which not exactly one is 0. */
struct chm_misfit {
    int64_t row, input, quads; /* quads: how many there are */
    int64_t weights;           /* that were changed so that they fit */
};
/* Packs tiles tile0..tile1 of w as `encoding`; codes is where tile 0 goes. What pads is written as the form has it, so
 * that the same weights are the same bytes whatever they come from. misfit gets the first that is found and adds up
 * quads; there the nearest is written: one of several zeros stays, the others become +1, and where there is none the
 * first of the four becomes 0. */
void chm_ternary_repack(const struct chm_ternary *w, int32_t encoding, int64_t tile0, int64_t tile1, uint8_t *codes,
                        struct chm_misfit *misfit);
/* Packs 16 rows of codes, 0..2, [16][in], into tile t of w in w's encoding; rows past w->out are not read. Of what does
 * not fit as above. */
void chm_ternary_pack(const struct chm_ternary *w, int64_t t, const uint8_t *code, uint8_t *codes,
                      struct chm_misfit *misfit);
/* Codes, 0..2, of inputs first .. first + n of a row, as far as there are; first and n are multiples of 64 */
void chm_ternary_codes(const struct chm_ternary *w, int64_t row, int64_t first, int64_t n, uint8_t *code);
/* How many of its weights are 0. */
int64_t chm_ternary_zeros(const struct chm_ternary *w);
/* The first byte of tile0..tile1 that no codes make, as an offset into codes; -1: all are sound */
int64_t chm_ternary_unsound(const struct chm_ternary *w, int64_t tile0, int64_t tile1);

#endif
