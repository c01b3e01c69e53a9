"""A small tiktoken.model in Kimi's format, learned from `tiktoken_text.TRAINING`, and encodings by the tiktoken library.

Real rank files cannot be shipped, so the merges are learned here: byte pairs by count, ties by bytes. Two tokens are added that
no sequence of merges reaches: an encoder must look a whole piece up before it starts to merge.
"""

import base64
import shutil
from collections import Counter

import regex
import tiktoken

from common import SERVER_FIXTURES, write_json
from tiktoken_text import SPECIAL_VECTORS, TRAINING, VECTORS

NUM_MERGES = 300
UNREACHABLE = [" quixotic".encode(), "東西南北".encode()]
NUM_RESERVED = 258  # the published class reserves 256 + 2 slots after the ranks

# Published names by their offset from the first special id; every other slot is <|reserved_token_ID|>.
SPECIAL_OFFSETS = {
    0: "[BOS]", 1: "[EOS]", 2: "<|im_end|>", 3: "<|im_user|>", 4: "<|im_assistant|>", 6: "<|start_header_id|>",
    7: "<|end_header_id|>", 9: "[EOT]", 10: "<|im_system|>", 17: "<|im_middle|>", 18: "<|media_start|>",
    19: "<|media_content|>", 20: "<|media_end|>", 21: "<|media_pad|>", 254: "[UNK]", 255: "[PAD]",
}

UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]"
SUFFIX = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
PATTERN = "|".join([
    r"[\p{Han}]+",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{SUFFIX}",
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{SUFFIX}",
    r"\p{N}{1,3}",
    r" ?[^\s\p{L}\p{N}]+[\r\n]*",
    r"\s*[\r\n]+",
    r"\s+(?!\S)",
    r"\s+",
])


def split(text):
    return regex.findall(PATTERN, text, flags=regex.V1)


def byte_order():
    """Printable bytes first, as in published rank files: rank and byte value are not the same."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return printable + [b for b in range(256) if b not in printable]


def learn_ranks():
    ranks = {bytes([b]): rank for rank, b in enumerate(byte_order())}
    words = Counter(tuple(bytes([b]) for b in piece.encode()) for piece in split(TRAINING))
    for _ in range(NUM_MERGES):
        pairs = Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        # Two pairs can spell one token; the second spelling is merged under the first one's rank.
        ranks.setdefault(best[0] + best[1], len(ranks))
        words = Counter({merge(word, best): count for word, count in words.items()})
    for token in UNREACHABLE:
        assert token not in ranks
        ranks[token] = len(ranks)
    return ranks


def merge(word, pair):
    out, i = [], 0
    while i < len(word):
        if word[i : i + 2] == pair:
            out.append(word[i] + word[i + 1])
            i += 2
        else:
            out.append(word[i])
            i += 1
    return tuple(out)


def special_tokens(num_ranks):
    ids = range(num_ranks, num_ranks + NUM_RESERVED)
    return {SPECIAL_OFFSETS.get(i - num_ranks, f"<|reserved_token_{i}|>"): i for i in ids}


def tokenizer_config(specials):
    named = sorted(SPECIAL_OFFSETS.values(), key=specials.get)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "added_tokens_decoder": {str(specials[name]): {"content": name, **flags} for name in named},
        "additional_special_tokens": [n for n in named if n not in ("[BOS]", "[EOS]", "[UNK]", "[PAD]")],
        "auto_map": {"AutoTokenizer": ["tokenization_moonshot.TikTokenTokenizer", None]},
        "bos_token": "[BOS]",
        "chat_template": (SERVER_FIXTURES / "templates" / "kimi_vl.jinja").read_text(encoding="utf-8"),
        "clean_up_tokenization_spaces": False, "eos_token": "[EOS]", "extra_special_tokens": {},
        "model_max_length": 1048576, "pad_token": "[PAD]", "tokenizer_class": "TikTokenTokenizer",
        "unk_token": "[UNK]",
    }


def plain_vector(encoding, text):
    """Special-token text is ordinary text here, as it must be for what a user types."""
    ids, pieces = encoding.encode(text, disallowed_special=()), split(text)
    # Guards the pieces: they come from another regex engine than tiktoken's own.
    assert "".join(pieces) == text
    assert ids == [i for piece in pieces for i in encoding._encode_single_piece(piece)], text
    assert encoding.decode_bytes(ids) == text.encode()
    return {"text": text, "pieces": pieces, "ids": ids}


def decode_vectors(encoding):
    """Token by token: the bytes of one token need not be whole characters."""
    out = []
    for text in ("😀 smile", "東西南北 and 月亮", "◁think▷", "naïve café"):
        ids = encoding.encode(text, disallowed_special=())
        out.append({"ids": ids, "token_bytes_hex": [encoding.decode_single_token_bytes(i).hex() for i in ids]})
    return out


def generate():
    folder = SERVER_FIXTURES / "tiktoken"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    ranks = learn_ranks()
    specials = special_tokens(len(ranks))
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    (folder / "tiktoken.model").write_text("".join(lines))
    write_json(folder / "tokenizer_config.json", tokenizer_config(specials))
    encoding = tiktoken.Encoding("small", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=specials)
    write_json(folder / "vectors.json", {
        "num_ranks": len(ranks),
        "num_ids": len(ranks) + NUM_RESERVED,
        "pattern": PATTERN,
        "plain": [plain_vector(encoding, text) for text in VECTORS],
        "with_special_tokens": [
            {"text": text, "ids": encoding.encode(text, allowed_special="all")} for text in SPECIAL_VECTORS
        ],
        "decode": decode_vectors(encoding),
    })
