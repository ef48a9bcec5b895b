/*
 * sentencepiece: models of the SentencePiece library (arXiv:1808.06226), which is linked, behind the C descriptor. No
 * exception leaves this file.
 *
 * A model is used as it is. Where it keeps text as it is (no normalisation, no space put before a text) and has all 256
 * byte pieces, as those that `train` makes, any bytes come back: what the library cannot hold, broken UTF-8 and the
 * mark it uses for a space, is spelled in byte pieces here.
 *
 * The library trusts its models with more than a file from elsewhere deserves, so `survey` walks the file first:
 * pieces, scores, and the normaliser's table, whose indices the library follows without looking. Memory that runs out
 * inside the library is beyond us: its destructors may end the process on the way of the exception.
 */
#include <chimera/plugin.h>

#include <sentencepiece_processor.h>
#include <sentencepiece_trainer.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace {

constexpr std::string_view space_mark("\xe2\x96\x81", 3); /* U+2581, a space inside pieces */

enum piece_type { NORMAL = 1, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE };

/* ---- the file: a protocol buffer, sentencepiece_model.proto of the library ---- */

struct wire {
    const uint8_t *at, *end;
    bool bad;
};

uint64_t varint(wire *w) {
    uint64_t value = 0;
    for (int shift = 0; shift < 64 && w->at < w->end; shift += 7) {
        const uint8_t byte = *w->at++;
        value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return value;
    }
    w->bad = true;
    return 0;
}

struct field {
    uint64_t number, type, value; /* value: of varints and, as bits, of fixed 32 */
    wire bytes;                   /* of a field with a length */
};

/* The next field; false at the end, or with w->bad. */
bool next_field(wire *w, field *f) {
    if (w->at == w->end || w->bad) return false;
    const uint64_t tag = varint(w);
    f->number = tag >> 3;
    f->type = tag & 7;
    f->value = 0;
    f->bytes = {w->at, w->at, false};
    if (f->number == 0) w->bad = true;
    uint64_t length = 0;
    switch (f->type) {
    case 0:
        f->value = varint(w);
        break;
    case 1:
        length = 8;
        break;
    case 2:
        length = varint(w);
        break;
    case 5:
        length = 4;
        break;
    default:
        w->bad = true;
    }
    if (w->bad || length > (uint64_t)(w->end - w->at)) {
        w->bad = true;
        return false;
    }
    f->bytes = {w->at, w->at + length, false};
    if (f->type == 5)
        for (int i = 0; i < 4; i++) f->value |= (uint64_t)w->at[i] << 8 * i;
    w->at += length;
    return true;
}

std::string_view text_of(const field &f) {
    return std::string_view(reinterpret_cast<const char *>(f.bytes.at), (size_t)(f.bytes.end - f.bytes.at));
}

struct survey_result {
    size_t pieces = 0;
    uint64_t model_type = 1;
    bool dummy_prefix = true, remove_spaces = true, escape_spaces = true,
         normalises = false;     /* the format's defaults */
    bool newline_inside = false; /* a piece has a newline before its end */
    bool space_inside = false;   /* a piece has a space after something else */
    char problem[160] = "";
};

uint32_t u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* A normaliser's table: u32 bytes of a double-array trie, the trie, then NUL-terminated replacements. Every jump from
 * every node must stay inside, whatever byte comes next, and every value must point at a replacement. */
bool sound_table(std::string_view table) {
    if (table.empty()) return true;
    if (table.size() < 4) return false;
    const uint8_t *data = reinterpret_cast<const uint8_t *>(table.data());
    const uint64_t trie = u32(data);
    if (trie % 4 != 0 || trie < 1024 || trie + 4 >= table.size()) return false;
    const uint64_t nodes = trie / 4, texts = table.size() - 4 - trie;
    if (data[table.size() - 1] != 0) return false;
    for (uint64_t i = 0; i < nodes; i++) {
        const uint32_t unit = u32(data + 4 + 4 * i);
        if (i > 0 && unit >> 31) continue; /* a value: never followed, but the root always is */
        const uint64_t base = i ^ ((uint64_t)(unit >> 10) << ((unit & 0x200) >> 6));
        if ((base | 0xff) >= nodes) return false;
        if ((unit >> 8 & 1) && (u32(data + 4 + 4 * base) & 0x7fffffff) >= texts) return false;
    }
    return true;
}

void survey_piece(wire w, survey_result *r) {
    field f;
    std::string_view text;
    uint64_t type = NORMAL;
    float score = 0;
    while (next_field(&w, &f)) {
        if (f.number == 1 && f.type == 2) text = text_of(f);
        if (f.number == 3 && f.type == 0) type = f.value;
        if (f.number == 2 && f.type == 5) {
            const uint32_t bits = (uint32_t)f.value;
            std::memcpy(&score, &bits, sizeof score);
        }
    }
    if (r->problem[0]) return;
    const char *what = w.bad                                       ? "cannot be read"
                       : text.empty()                              ? "is empty"
                       : text.find('\0') != std::string_view::npos ? "holds a zero byte"
                       : text.size() > 4096                        ? "is longer than 4096 bytes"
                       : type < NORMAL || type > BYTE              ? "is of no known type"
                       : !(std::fabs(score) < 1e30f)               ? "has no finite score"
                                                                   : nullptr;
    if (what) std::snprintf(r->problem, sizeof r->problem, "piece %zu %s", r->pieces, what);
    if (type == CONTROL || type == UNKNOWN || type == BYTE) return;
    const size_t newline = text.find('\n');
    if (newline != std::string_view::npos && newline + 1 < text.size()) r->newline_inside = true;
    for (size_t at = text.find(space_mark); at != std::string_view::npos; at = text.find(space_mark, at + 3))
        if (at > 0 && (at < 3 || text.substr(at - 3, 3) != space_mark)) r->space_inside = true;
    if (text.find(' ') != std::string_view::npos) r->space_inside = true;
}

survey_result survey(const void *data, size_t bytes) {
    survey_result r;
    const uint8_t *begin = static_cast<const uint8_t *>(data);
    wire w = {begin, begin + bytes, false};
    field f, g;
    while (next_field(&w, &f)) {
        if (f.number == 1 && f.type == 2) {
            survey_piece(f.bytes, &r);
            r.pieces++;
        }
        if (f.number == 2 && f.type == 2) {
            wire spec = f.bytes;
            while (next_field(&spec, &g))
                if (g.number == 3 && g.type == 0) r.model_type = g.value;
        }
        if ((f.number == 3 || f.number == 5) && f.type == 2) {
            wire spec = f.bytes;
            while (next_field(&spec, &g)) {
                if (g.number == 2 && g.type == 2) {
                    if (!sound_table(text_of(g)))
                        std::snprintf(r.problem, sizeof r.problem, "the table of its normaliser is damaged");
                    if (f.number == 3 && !text_of(g).empty()) r.normalises = true;
                }
                if (f.number == 3 && g.type == 0) {
                    if (g.number == 3) r.dummy_prefix = g.value != 0;
                    if (g.number == 4) r.remove_spaces = g.value != 0;
                    if (g.number == 5) r.escape_spaces = g.value != 0;
                }
            }
            if (spec.bad) w.bad = true;
        }
    }
    if (w.bad) std::snprintf(r.problem, sizeof r.problem, "it ends early, or is no protocol buffer");
    if (!r.problem[0] && (r.pieces == 0 || r.pieces > 1u << 24))
        std::snprintf(r.problem, sizeof r.problem, "it has %zu pieces", r.pieces);
    return r;
}

/* ---- an instance ---- */

struct state {
    const chm_host *host;
    sentencepiece::SentencePieceProcessor processor;
    std::string pool; /* bytes of all ids, one after the other */
    std::vector<uint32_t> start;
    std::vector<bool> is_special;
    int32_t byte_id[256];
    int32_t end;
    bool plain;      /* text is kept as it is */
    bool every_byte; /* there are 256 byte pieces */
    bool lossless;
    bool cut_newline, cut_space;
    bool space_prefix;
};

struct instance {
    state *s;
};

/* host->fail, for what is caught at the boundary. */
int caught(const chm_host *host, const char *doing) {
    try {
        throw;
    } catch (const std::bad_alloc &) {
        return host->fail(CHM_E_MEMORY, "out of memory while %s", doing);
    } catch (const std::exception &e) {
        return host->fail(CHM_E_DATA, "sentencepiece failed while %s: %s", doing, e.what());
    } catch (...) {
        return host->fail(CHM_E_DATA, "sentencepiece failed while %s", doing);
    }
}

/* The library's sentence, fit for one line of ours: without the place in its source. */
std::string sentence_of(const sentencepiece::util::Status &status) {
    std::string text = status.error_message();
    const size_t source = text.find("] ");
    if (source != std::string::npos && text.find(".cc(") < source) text.erase(0, source + 2);
    /* what it goes on to advise are options of its own commands */
    const size_t advice = text.find(" Increase vocab_size or");
    if (advice != std::string::npos) text.erase(advice);
    if (text.size() > 300) text.resize(300);
    for (char &c : text)
        if ((unsigned char)c < 0x20 || (unsigned char)c >= 0x7f) c = '?';
    return text.empty() ? "it gives no reason" : text;
}

/* Bytes of the character at s, 0: none (broken UTF-8). */
size_t character(const uint8_t *s, size_t n) {
    if (s[0] < 0x80) return 1;
    size_t length = s[0] >= 0xf0 ? 4 : s[0] >= 0xe0 ? 3 : 2;
    if (s[0] < 0xc2 || s[0] > 0xf4 || length > n) return 0;
    for (size_t i = 1; i < length; i++)
        if ((s[i] & 0xc0) != 0x80) return 0;
    if ((s[0] == 0xe0 && s[1] < 0xa0) || (s[0] == 0xed && s[1] > 0x9f) || (s[0] == 0xf0 && s[1] < 0x90) ||
        (s[0] == 0xf4 && s[1] > 0x8f))
        return 0;
    return length;
}

/* What each id stands for. */
void list_pieces(state *s) {
    const sentencepiece::SentencePieceProcessor &p = s->processor;
    int bytes = 0;
    for (int b = 0; b < 256; b++) s->byte_id[b] = -1;
    for (int id = 0; id < p.GetPieceSize(); id++) {
        const std::string &piece = p.IdToPiece(id);
        s->start.push_back((uint32_t)s->pool.size());
        s->is_special.push_back(p.IsControl(id));
        if (p.IsControl(id)) continue;
        if (p.IsByte(id)) {
            const long byte = piece.size() == 6 ? std::strtol(piece.c_str() + 3, nullptr, 16) : 0; /* "<0x0A>" */
            s->pool.push_back((char)(uint8_t)byte);
            if (s->byte_id[(uint8_t)byte] < 0) bytes++;
            s->byte_id[(uint8_t)byte] = id;
            continue;
        }
        if (p.IsUnknown(id)) {
            std::string shown;
            if (p.Decode(std::vector<int>{id}, &shown).ok()) s->pool += shown;
            continue;
        }
        for (size_t at = 0; at < piece.size();) {
            if (piece.compare(at, space_mark.size(), space_mark) == 0) {
                s->pool.push_back(' ');
                at += space_mark.size();
            } else {
                s->pool.push_back(piece[at++]);
            }
        }
    }
    s->start.push_back((uint32_t)s->pool.size());
    s->every_byte = bytes == 256;
}

int open_model(state *s, const void *data, size_t bytes) {
    const chm_host *host = s->host;
    const survey_result r = survey(data, bytes);
    if (r.problem[0])
        return host->fail(CHM_E_DATA, "not a sound sentencepiece model: %s; train one with `chimera tokenizer train`",
                          r.problem);
    const auto status = s->processor.LoadFromSerializedProto(std::string_view(static_cast<const char *>(data), bytes));
    if (!status.ok())
        return host->fail(CHM_E_DATA, "sentencepiece refuses this model: %s", sentence_of(status).c_str());
    list_pieces(s);
    const sentencepiece::SentencePieceProcessor &p = s->processor;
    s->end = p.eos_id() >= 0 ? p.eos_id() : p.bos_id();
    s->space_prefix = r.dummy_prefix;
    s->plain = !r.normalises && !r.dummy_prefix && !r.remove_spaces && r.escape_spaces;
    /* neighbours that are both unknown become one id, unless bytes stand in for them: a cut must not part them */
    /* without a piece for a space it is spelled as the bytes of the mark, which come back as the mark */
    s->lossless = s->plain && s->every_byte && !p.IsUnknown(p.PieceToId(space_mark));
    s->cut_newline = s->plain && !r.newline_inside && (s->every_byte || !p.IsUnknown(p.PieceToId("\n")));
    /* merging by score sees only neighbours; the sums of a unigram model are rounded, and what came before may tip a
     * tie */
    s->cut_space =
        s->plain && r.model_type == 2 && !r.space_inside && (s->every_byte || !p.IsUnknown(p.PieceToId(space_mark)));
    return CHM_OK;
}

int sp_init(void *self, const chm_host *host, const void *data, size_t bytes) {
    instance *t = static_cast<instance *>(self);
    if (bytes == 0)
        return host->fail(CHM_E_CONFIG, "tokenizer 'sentencepiece' needs a model: name it as files.tokenizer in the "
                                        "card (`chimera tokenizer train` makes one)");
    try {
        std::unique_ptr<state> s(new state());
        s->host = host;
        const int status = open_model(s.get(), data, bytes);
        if (status != CHM_OK) return status;
        t->s = s.release();
        return CHM_OK;
    } catch (...) {
        return caught(host, "reading a model");
    }
}

void sp_finish(void *self) {
    try {
        delete static_cast<instance *>(self)->s;
    } catch (...) {}
}

int32_t sp_vocab_size(const void *self) { return (int32_t) static_cast<const instance *>(self)->s->start.size() - 1; }

int32_t sp_end_of_text(const void *self) { return static_cast<const instance *>(self)->s->end; }

int64_t sp_encode(const void *self, const uint8_t *text, size_t bytes, int32_t *ids, size_t cap) {
    const state *s = static_cast<const instance *>(self)->s;
    int64_t count = 0;
    const auto put = [&](int32_t id) {
        if ((uint64_t)count < cap) ids[count] = id;
        count++;
    };
    try {
        std::vector<int> some;
        const auto put_text = [&](size_t from, size_t to) {
            if (from == to) return true;
            const auto status =
                s->processor.Encode(std::string_view(reinterpret_cast<const char *>(text) + from, to - from), &some);
            if (!status.ok()) {
                s->host->fail(CHM_E_DATA, "sentencepiece cannot encode this text: %s", sentence_of(status).c_str());
                return false;
            }
            for (const int id : some) put(id);
            return true;
        };
        size_t from = 0, at = 0;
        while ((s->cut_newline || (s->plain && s->every_byte)) && at < bytes) {
            size_t n = character(text + at, bytes - at), broken = 0;
            if (s->cut_newline && text[at] == '\n') {
                /* line by line, so that a line's tokens are its own whatever came before */
                if (!put_text(from, at + 1)) return -1;
                from = at + 1;
            }
            if (!s->every_byte)
                n = n ? n : 1;
            else if (n == 0)
                broken = 1;
            else if (n == 3 && std::memcmp(text + at, space_mark.data(), 3) == 0)
                broken = 3;
            if (broken) {
                if (!put_text(from, at)) return -1;
                for (size_t i = 0; i < broken; i++) put(s->byte_id[text[at + i]]);
                from = at + broken;
                n = broken;
            }
            at += n;
        }
        return put_text(from, bytes) ? count : -1;
    } catch (...) {
        caught(s->host, "encoding");
        return -1;
    }
}

int64_t sp_decode(const void *self, int32_t id, uint8_t *out, size_t cap) {
    const state *s = static_cast<const instance *>(self)->s;
    if (id < 0 || (size_t)id + 1 >= s->start.size()) return -1;
    const size_t n = s->start[(size_t)id + 1] - s->start[(size_t)id];
    if (n > 0 && cap > 0) std::memcpy(out, s->pool.data() + s->start[(size_t)id], n < cap ? n : cap);
    return (int64_t)n;
}

/* After a newline that no piece goes on from, or before a space that no piece has in its middle. A model that rewrites
 * text has no place that is sure; there a line is the best there is. */
size_t sp_cut(const void *self, const uint8_t *text, size_t bytes) {
    const state *s = static_cast<const instance *>(self)->s;
    for (size_t i = bytes; i > 0; i--) {
        if (text[i - 1] == '\n' && (s->cut_newline || !s->plain)) return i;
        if (s->cut_space && i < bytes && text[i] == ' ' && text[i - 1] != ' ' && text[i - 1] < 0x80) return i;
    }
    return 0;
}

const char *sp_special(const void *self, int32_t id) {
    const state *s = static_cast<const instance *>(self)->s;
    if (id < 0 || (size_t)id >= s->is_special.size() || !s->is_special[(size_t)id]) return nullptr;
    return s->processor.IdToPiece(id).c_str();
}

uint64_t sp_properties(const void *self) {
    const state *s = static_cast<const instance *>(self)->s;
    uint64_t properties = 0;
    if (s->lossless) properties |= CHM_TOKENIZER_LOSSLESS;
    if (s->space_prefix) properties |= CHM_TOKENIZER_SPACE_PREFIX;
    return properties;
}

/* ---- training ---- */

class sentences : public sentencepiece::SentenceIterator {
  public:
    explicit sentences(const chm_tokenizer_training *t) : training(t) { sentences::Next(); }
    bool done() const override { return ended; }
    void Next() override {
        size_t bytes = 0;
        const uint8_t *text = training->next(training->user, &bytes);
        ended = text == nullptr;
        current.assign(text ? reinterpret_cast<const char *>(text) : "", bytes);
    }
    const std::string &value() const override { return current; }
    sentencepiece::util::Status status() const override { return sentencepiece::util::Status(); }

  private:
    const chm_tokenizer_training *training;
    std::string current;
    bool ended = false;
};

int sp_train(const chm_host *host, const chm_tokenizer_training *training) {
    const char *method = training->method ? training->method : "bpe";
    if (std::strcmp(method, "bpe") != 0 && std::strcmp(method, "unigram") != 0)
        return host->fail(CHM_E_CONFIG, "no method '%s' to train a tokenizer: there are bpe and unigram", method);
    try {
        /* Everything that would change the text is off; what no piece covers is spelled in bytes. One thread: a sum
         * over several would depend on how many there are. */
        const std::unordered_map<std::string, std::string> options = {
            {"model_type", method},
            {"vocab_size", std::to_string(training->vocab)},
            {"normalization_rule_name", "identity"},
            {"add_dummy_prefix", "false"},
            {"remove_extra_whitespaces", "false"},
            {"allow_whitespace_only_pieces", "true"},
            {"byte_fallback", "true"},
            {"character_coverage", "1.0"},
            {"split_digits", "true"},
            {"max_sentence_length", "1048576"},
            {"num_threads", "1"},
            {"unk_id", "0"},
            {"eos_id", "1"},
            {"pad_id", "2"},
            {"bos_id", "-1"},
            {"eos_piece", "<|endoftext|>"},
            {"pad_piece", "<|pad|>"},
            {"minloglevel", "2"},
        };
        sentences text(training);
        std::string model;
        if (text.done() && !*training->failed)
            return host->fail(CHM_E_DATA, "there is no text to train a tokenizer on: every line is empty");
        const auto status = sentencepiece::SentencePieceTrainer::Train(options, &text, &model);
        if (*training->failed) return CHM_E_DATA;
        if (!status.ok())
            return host->fail(CHM_E_CONFIG,
                              "sentencepiece cannot make %d pieces of this text: %s (260 are specials and bytes, and "
                              "every character of the text takes one more)",
                              training->vocab, sentence_of(status).c_str());
        return training->write(training->user, model.data(), model.size());
    } catch (...) {
        return caught(host, "training");
    }
}

} // namespace

static const chm_tokenizer_ops sp_ops = {
    sizeof(chm_tokenizer_ops),
    0,
    sp_init,
    sp_finish,
    sp_vocab_size,
    sp_end_of_text,
    sp_encode,
    sp_decode,
    false,
    sp_cut,
    sp_special,
    sp_properties,
    sp_train,
    {},
};

extern "C" {
CHM_EXPORT extern const chm_plugin CHM_PLUGIN_SYMBOL(sentencepiece);
/* CHM_PLUGIN() is C: the same, member by member. */
const chm_plugin CHM_PLUGIN_SYMBOL(sentencepiece) = {
    CHM_MAGIC,
    CHM_ABI,
    sizeof(chm_plugin),
    CHM_KIND_TOKENIZER,
    "sentencepiece",
    nullptr,
    "spm",
    "1.0.0",
    "Apache-2.0",
    "models of the SentencePiece library, BPE and unigram; trains them too (arXiv:1808.06226)",
    nullptr,
    0,
    sizeof(instance),
    0,
    0,
    &sp_ops,
    {nullptr, nullptr, nullptr, nullptr},
};
}
