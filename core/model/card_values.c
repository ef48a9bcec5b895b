/* card_values.c: values of a resolved card as numbers and words, for reports. */
#include "model/declared.h"
#include <stdlib.h>
#include <string.h>

double chm_card_number(const chm_card *card, const char *key, double otherwise) {
    const char *text = chm_card_get(card, key, NULL);
    if (!text) return otherwise;
    char *end;
    const double v = strtod(text, &end);
    return end == text || *end ? otherwise : v;
}

int chm_card_numbers(const chm_card *card, const char *key, double *out, int cap) {
    const char *at = chm_card_get(card, key, NULL);
    int count = 0;
    while (at && *at) {
        if (*at == '"') { /* texts may stand between: [8192, "uint64_x128"] */
            for (at++; *at && *at != '"'; at++) at += *at == '\\' && at[1];
            at += *at == '"';
            continue;
        }
        char *end;
        const double v = strtod(at, &end);
        if (end == at) {
            at++;
            continue;
        }
        if (count < cap) out[count] = v;
        count++;
        at = end;
    }
    return count;
}

bool chm_card_on(const chm_card *card, const char *key) {
    const char *text = chm_card_get(card, key, NULL);
    return text && !strcmp(text, "true");
}

bool chm_card_says(const chm_card *card, const char *key, const char *word) {
    const char *text = chm_card_get(card, key, NULL);
    return text && strstr(text, word);
}
