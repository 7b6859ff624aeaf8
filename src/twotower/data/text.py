"""Text as bags of tokens: words, character n-grams, parts of names, or trained subwords.

A token becomes a row by its hash (words mode) or is a row already (subwords). Texts are cut once for each *distinct*
text of a chunk, words once for each distinct word, so repeated titles and common words cost next to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..errors import ConfigError
from ..schema import Text
from .arrow import column_of, is_list, list_lengths
from .columns import RaggedArray
from .statistics import Slots
from .vocabulary import DistinctHashes, hash64, mix64, text_form

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_WORD = re.compile(r"\w+")
_NAME_PART = re.compile(r"[^\W_]+")
_LETTERS_OR_DIGITS = re.compile(r"\d+|[^\W\d_]+")
_DIGITS = re.compile(r"\d+")
_VERSION_CHARACTERS = "0123456789.-_"
_KIND_ENDING = re.compile(
    r"[-_.](dev|devel|docs?|data|common|dbg|dbgsym|bin|utils?|tools?|examples?|extras?|libs?|perl|python|ruby|java|js|"
    r"runtime|headers|core|base|full|server|client|plugins?|l10n|i18n)$"
)

_WORD_SEED, _GRAM_SEED = 0, 1  # the trigram "cat" of "concatenate" is not the word "cat"
_SAMPLED_TEXTS = 50_000
_SAMPLED_CHARS = 2_000


# ---------------------------------------------------------------- from text to tokens


def word_tokens(text: str) -> list[str]:
    """Lower-case words: runs of letters, digits and underscores."""
    return _WORD.findall(text.lower())


def element_tokens(text: str) -> list[str]:
    """An element of a list column: its words, and the whole of it where that is more than one word."""
    whole = text.strip().lower()
    words = _WORD.findall(whole)
    return words if not whole or words == [whole] else [whole, *words]


def name_tokens(name: str) -> list[str]:
    """What a name such as ``libgtk-3-dev`` tells, each once.

    Its words; its parts between other characters, those parts cut where letters meet digits and those without digits;
    first and last part (``^libgtk``, ``dev$``); and the stem (``=gtk``).
    """
    whole = name.strip().lower()
    parts = _NAME_PART.findall(whole)
    if not parts:
        return []
    pieces = chain.from_iterable(_LETTERS_OR_DIGITS.findall(part) for part in parts)
    without_digits = (_DIGITS.sub("", part) for part in parts)
    tokens = [*_WORD.findall(whole), *parts, *pieces, *without_digits]
    tokens += [f"^{parts[0]}", f"{parts[-1]}$", f"={name_stem(whole)}"]
    return [token for token in dict.fromkeys(tokens) if token]


def name_stem(name: str) -> str:
    """What a family of names has in common: without a leading ``lib`` and without endings that tell a version or a kind
    of package (``-dev``, ``-doc``, ``-data`` ...).

    ``libgtk-3-dev``, ``libgtk2.0-0`` and ``gtk-doc`` have the stem ``gtk``.
    """
    stem = name
    while True:
        shorter = _KIND_ENDING.sub("", stem).rstrip(_VERSION_CHARACTERS)
        if shorter == stem or not shorter:
            break
        stem = shorter
    return stem[3:] if stem.startswith("lib") and len(stem) > 3 else stem


def char_grams(word: str, shortest: int, longest: int) -> list[str]:
    """The n-grams of ``<word>`` for n from shortest to longest: all of them, in order of n."""
    marked = f"<{word}>"
    return [marked[at : at + n] for n in range(shortest, longest + 1) for at in range(len(marked) - n + 1)]


# ---------------------------------------------------------------- bags


@dataclass(frozen=True, slots=True, kw_only=True)
class Bags:
    """n bags of tokens, end to end; a token occurs once in a bag, with its count."""

    n: int
    owner: NDArray[np.int64]
    """Which bag each entry belongs to, rising."""
    row: NDArray[np.int64]
    """Embedding row of the token, rising inside a bag."""
    count: NDArray[np.int64]

    def hashes(self) -> NDArray[np.uint64]:
        """[n] one 64-bit hash a bag, 0 if empty: texts with the same tokens count as one document."""
        hashed = np.zeros(self.n, np.uint64)
        entry = mix64(mix64(self.row.astype(np.uint64)) + self.count.astype(np.uint64))
        starts = np.flatnonzero(np.diff(self.owner, prepend=-1))
        if len(starts):
            hashed[self.owner[starts]] = np.add.reduceat(entry, starts)
        return hashed

    def weighted(self, idf: NDArray[np.float32] | None) -> RaggedArray:
        """As lists: (1 + log count) times idf, scaled to unit length; without idf count over total count."""
        weight = self.count.astype(np.float64)
        if idf is None:
            weight /= np.bincount(self.owner, weight, minlength=self.n)[self.owner]
        else:
            weight = (1 + np.log(weight)) * idf[self.row]
            weight /= np.sqrt(np.bincount(self.owner, weight * weight, minlength=self.n))[self.owner]
        length = np.bincount(self.owner, minlength=self.n)
        return RaggedArray.of_lengths(length, self.row.astype(np.int32), weight.astype(np.float32))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextColumn:
    """The texts of one column: n rows with any number of elements each."""

    length: NDArray[np.int64]
    element: pa.LargeStringArray
    tokens: Callable[[str], list[str]]
    """How an element is cut in words mode."""
    is_name: bool


def text_columns(feature: Text, table: pa.Table) -> list[TextColumn]:
    """The columns a text feature reads.

    Raises:
        DataError: a column is missing or holds neither texts nor lists of texts.
    """
    plain = [_column(table, column, word_tokens, is_name=False) for column in feature.columns]
    return plain + [_column(table, column, name_tokens, is_name=True) for column in feature.name_columns]


def _column(table: pa.Table, name: str, tokens: Callable[[str], list[str]], *, is_name: bool) -> TextColumn:
    array = column_of(table, name)
    if is_list(array.type):
        length, element = list_lengths(array), text_form(pc.list_flatten(array), name)
        tokens = tokens if is_name else element_tokens
    else:
        length, element = np.ones(len(array), np.int64), text_form(array, name)
    return TextColumn(length=length, element=element.fill_null(""), tokens=tokens, is_name=is_name)


def hashed_bags(feature: Text, columns: list[TextColumn], tokens_seen: DistinctHashes | None = None) -> Bags:
    """Bags of words, character n-grams and name parts; ``tokens_seen`` collects the hashes of the distinct tokens."""
    lists = [_hashed_elements(column, feature, tokens_seen) for column in columns]
    return _merged(lists, columns, feature.buckets)


def _hashed_elements(column: TextColumn, feature: Text, tokens_seen: DistinctHashes | None) -> RaggedArray:
    """Rows of each element's tokens, repeats included."""
    coded = column.element.dictionary_encode()
    cut = [column.tokens(text)[: _limit(column, feature)] for text in coded.dictionary.to_pylist()]
    length = np.fromiter(map(len, cut), np.int64, len(cut))
    words = pa.array(chain.from_iterable(cut), pa.large_string()).dictionary_encode()
    word_lists = _rows_of_words(words.dictionary, feature, tokens_seen)
    of_text = _joined(RaggedArray.of_lengths(length, _codes(words)), word_lists)
    return of_text.take(_codes(coded))


def _limit(column: TextColumn, feature: Text) -> int | None:
    """Tokens read of each of its texts."""
    return None if column.is_name else feature.length


def _codes(coded: pa.DictionaryArray) -> NDArray[np.int64]:
    return np.asarray(coded.indices.to_numpy(zero_copy_only=False), np.int64)


def _rows_of_words(words: pa.LargeStringArray, feature: Text, tokens_seen: DistinctHashes | None) -> RaggedArray:
    """One list a distinct word: its own row, then those of its character n-grams (marked tokens have none)."""
    own = hash64(words, _WORD_SEED)
    if feature.chars is None:
        grams, length = np.zeros(0, np.uint64), np.zeros(len(words), np.int64)
    else:
        shortest, longest = feature.chars
        cut = [char_grams(word, shortest, longest) if _WORD.fullmatch(word) else [] for word in words.to_pylist()]
        length = np.fromiter(map(len, cut), np.int64, len(cut))
        coded = pa.array(chain.from_iterable(cut), pa.large_string()).dictionary_encode()
        grams = hash64(coded.dictionary, _GRAM_SEED)[_codes(coded)]
    if tokens_seen is not None:
        tokens_seen.add(np.concatenate([own, grams]))
    both = np.insert(grams, np.cumsum(length) - length, own)
    return RaggedArray.of_lengths(length + 1, (both % np.uint64(feature.buckets)).astype(np.int64))


def _joined(outer: RaggedArray, inner: RaggedArray) -> RaggedArray:
    """Lists of list numbers -> lists of what is in those lists."""
    flat = inner.take(outer.value)
    return RaggedArray(offset=flat.offset[outer.offset], value=flat.value)


def _merged(elements: list[RaggedArray], columns: list[TextColumn], size: int) -> Bags:
    """Bags of the rows from the lists of their elements, all columns together."""
    n = len(columns[0].length)
    keys = []
    for lists, column in zip(elements, columns, strict=True):
        owner = np.repeat(np.arange(n), column.length)  # of an element
        keys.append(np.repeat(owner, lists.lengths()) * size + lists.value)
    key, count = np.unique(np.concatenate(keys), return_counts=True)
    owner, row = np.divmod(key, size)
    return Bags(n=n, owner=owner, row=row, count=count)


# ---------------------------------------------------------------- subwords


def train_subwords(texts: list[str], size: int) -> str:
    """Train ``size`` subword tokens (lower-cased bytes, merged by frequency) and return the tokenizer as its JSON.

    Source: Sennrich, Haddow and Birch 2016, "Neural machine translation of rare words with subword units".

    Raises:
        ConfigError: the library ``tokenizers`` is not installed.
    """
    _require_tokenizers()
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return str(tokenizer.to_str())


def open_subwords(saved: str) -> Tokenizer:
    """The tokenizer from its JSON.

    Raises:
        ConfigError: the library ``tokenizers`` is not installed.
    """
    _require_tokenizers()
    from tokenizers import Tokenizer

    return Tokenizer.from_str(saved)


def _require_tokenizers() -> None:
    try:
        import tokenizers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            "a Text feature with subwords needs the library tokenizers: pip install twotower[text], "
            "or leave subwords out"
        ) from error


def subword_bags(feature: Text, columns: list[TextColumn], tokenizer: Tokenizer, size: int) -> Bags:
    """Bags of trained subwords; a name's parts are separate words."""
    return _merged([_subword_elements(column, feature, tokenizer) for column in columns], columns, size)


def _subword_elements(column: TextColumn, feature: Text, tokenizer: Tokenizer) -> RaggedArray:
    coded = column.element.dictionary_encode()
    texts = [_spelled_out(text, column) for text in coded.dictionary.to_pylist()]
    limit = _limit(column, feature)
    cut = [encoding.ids[:limit] for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
    length = np.fromiter(map(len, cut), np.int64, len(cut))
    value = np.fromiter(chain.from_iterable(cut), np.int64, int(length.sum()))
    return RaggedArray.of_lengths(length, value).take(_codes(coded))


def _spelled_out(text: str, column: TextColumn) -> str:
    return " ".join(_NAME_PART.findall(text)) if column.is_name else text


# ---------------------------------------------------------------- fitting


@dataclass(frozen=True, slots=True, kw_only=True)
class TextTable:
    """What a table of text tokens learnt: how rare its rows are, and the subwords if it has some."""

    size: int
    """Rows of the table."""
    idf: NDArray[np.float32]
    """[size] log((1 + documents) / (1 + documents with the row)) + 1."""
    subwords: str | None = None
    """The tokenizer's JSON."""
    n_tokens: int = 0
    """Distinct tokens seen (words mode)."""
    n_hit: int = 0
    """Rows they fell into."""


class TextFit:
    """Document frequencies, in a stream, of all the text features that share a table.

    Texts with the same tokens are one document, wherever they occur: a page that is query and item is counted once.
    Memory: 8 bytes a distinct document and token. With subwords, which exist only in the end, a fair sample of the
    documents is kept; subwords are trained and their frequencies counted on it.
    """

    def __init__(self, feature: Text) -> None:
        """Raises:
        ConfigError: subwords are asked for and the library ``tokenizers`` is not installed.
        """
        if feature.subwords is not None:
            _require_tokenizers()  # before anything is read, not after
        self._subwords = feature.subwords
        self._size = feature.buckets if feature.subwords is None else feature.subwords
        self._documents = DistinctHashes()
        self._tokens = DistinctHashes()
        self._document_count = np.zeros(self._size, np.int64)
        self._slots = Slots(_SAMPLED_TEXTS)
        self._sample: list[str] = []

    def update(self, feature: Text, table: pa.Table) -> int:
        """Count the rows of a chunk; returns how many have no text."""
        columns = text_columns(feature, table)
        if self._subwords is not None:
            return self._keep(columns)
        bags = hashed_bags(feature, columns, self._tokens)
        filled = np.unique(bags.owner)
        is_new = np.zeros(bags.n, bool)
        is_new[filled[self._documents.add(bags.hashes()[filled])]] = True
        self._document_count += np.bincount(bags.row[is_new[bags.owner]], minlength=self._size)
        return bags.n - len(filled)

    def _keep(self, columns: list[TextColumn]) -> int:
        """Let the texts of the rows take their places in the sample."""
        texts = _joined_texts(columns)
        filled = np.flatnonzero(np.fromiter(map(bool, texts), bool, len(texts)))
        known = pa.array([texts[at] for at in filled], pa.large_string())
        new = filled[self._documents.add(hash64(known))]
        for at, place in zip(new.tolist(), self._slots.of(len(new)).tolist(), strict=True):
            if place == len(self._sample):
                self._sample.append(texts[at])
            elif place >= 0:
                self._sample[place] = texts[at]
        return len(texts) - len(filled)

    def finish(self) -> TextTable:
        """What was learnt; subwords are trained here."""
        if self._subwords is None:
            idf = _inverse_frequency(self._document_count, len(self._documents))
            hit = np.unique(self._tokens.values() % np.uint64(self._size))
            return TextTable(size=self._size, idf=idf, n_tokens=len(self._tokens), n_hit=len(hit))
        saved = train_subwords(self._sample, self._size)
        ids = (encoding.ids for encoding in open_subwords(saved).encode_batch_fast(self._sample))
        count = np.zeros(self._size, np.int64)
        for document in ids:
            count[list(set(document))] += 1
        return TextTable(size=self._size, idf=_inverse_frequency(count, len(self._sample)), subwords=saved)


def _joined_texts(columns: list[TextColumn]) -> list[str]:
    """[n] all elements of a row, of all columns, with blanks between."""
    texts: list[list[str]] = [[] for _ in columns[0].length]
    for column in columns:
        owner = np.repeat(np.arange(len(texts)), column.length)
        for at, text in zip(owner.tolist(), column.element.to_pylist(), strict=True):
            if text:
                texts[at].append(_spelled_out(text, column))
    return [" ".join(parts)[:_SAMPLED_CHARS] for parts in texts]


def _inverse_frequency(document_count: NDArray[np.int64], n: int) -> NDArray[np.float32]:
    return (np.log((1 + n) / (1 + document_count)) + 1).astype(np.float32)
