"""word2vec at toy size: what is drawn, what one step moves, how vectors are scored, and the whole of it."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.data import data_folder
from recipes.word2vec.__main__ import measure
from recipes.word2vec.baseline import train_gensim, write_sentences
from recipes.word2vec.corpus import (
    WINDOW,
    Architecture,
    Corpus,
    WindowBatches,
    cbow,
    keep_probability,
    read_sentences,
    skip_gram,
    windows,
)
from recipes.word2vec.model import ARMS, IN, OUT, Settings, Words, run_of, train
from recipes.word2vec.similarity import (
    analogies,
    covered,
    rank_correlation,
    read_analogies,
    read_rated_pairs,
    similarity,
)
from scipy.stats import spearmanr

from twotower.negatives import propose
from twotower.records import Batch, Ragged
from twotower.scoring import encode
from twotower.training.step import CurrentModel, Model

RIVER, HARBOUR = ["water", "bank", "fish", "bridge"], ["ship", "crane", "dock", "rope"]


def two_topics(sentences: int = 300, seed: int = 0) -> list[list[str]]:
    """Sentences of six words, each out of one topic alone."""
    rng = np.random.default_rng(seed)
    return [list(rng.choice(RIVER if s % 2 else HARBOUR, 6)) for s in range(sentences)]


def corpus_of_counts(count: list[int]) -> Corpus:
    """One sentence with word w ``count[w]`` times."""
    return Corpus.of([[f"w{w}" for w, n in enumerate(count) for _ in range(n)]], min_count=1)


# ---------------------------------------------------------------- the text


def test_words_are_lower_case_letters_with_apostrophes(tmp_path: Path) -> None:
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress("Don't stop, said Zoë -- 'no'.\n\n42 Rock'n'roll_x\n".encode()))
    assert read_sentences(path) == [["don't", "stop", "said", "zoë", "no"], [], ["rock'n'roll", "x"]]


def test_rare_words_are_taken_out_of_their_sentences() -> None:
    corpus = Corpus.of([["a", "rare", "b"], ["b", "a", "b"], ["odd"]], min_count=2)
    assert corpus.word_V == ["b", "a"]  # 3 and 2 times
    assert corpus.count_V.tolist() == [3, 2]
    assert corpus.token_T.tolist() == [1, 0, 0, 1, 0]
    assert corpus.sentence_T.tolist() == [0, 0, 1, 1, 1]


def test_keep_probability_is_the_formula() -> None:
    count_V = np.array([9900, 90, 10])  # shares .99, .009, .001
    paper = keep_probability(count_V, sample=0.001, form="paper")
    code = keep_probability(count_V, sample=0.001, form="code")
    assert paper == pytest.approx([math.sqrt(0.001 / 0.99), math.sqrt(0.001 / 0.009), 1.0])
    # (sqrt(f / t) + 1) t / f; for the last word 2, so it stays
    assert code == pytest.approx([(math.sqrt(990) + 1) / 990, (math.sqrt(9) + 1) / 9, 1.0])
    assert keep_probability(count_V, sample=0, form="code").tolist() == [1, 1, 1]


@pytest.mark.parametrize("form", ["code", "paper"])
def test_an_epoch_keeps_that_share_of_each_word(form: str) -> None:
    corpus = corpus_of_counts([40_000, 8_000, 2_000])
    batches = WindowBatches(corpus, architecture="cbow", batch_size=5_000, window=2, sample=0.05, form=form)
    found_V = sum(batch.item_P.bincount(minlength=3) for batch in batches.epoch(0)).double()
    share_V = np.array([0.8, 0.16, 0.04])
    keep_V = np.minimum(1, np.sqrt(0.05 / share_V) + (0.05 / share_V if form == "code" else 0))
    expected_V = keep_V * [40_000, 8_000, 2_000]
    deviation_V = np.sqrt(expected_V * (1 - keep_V))
    assert (np.abs(found_V.numpy() - expected_V) <= 4 * deviation_V).all()
    assert batches.steps_per_epoch == math.ceil(round(expected_V.sum()) / 5_000)


# ---------------------------------------------------------------- windows


def naive_windows(token: list[int], sentence: list[int], centre: list[int], radius: list[int]) -> list[list[int]]:
    return [
        [token[j] for j in range(len(token)) if j != i and abs(i - j) <= r and sentence[i] == sentence[j]]
        for i, r in zip(centre, radius, strict=True)
    ]


def test_windows_are_those_of_a_loop() -> None:
    rng = np.random.default_rng(3)
    token_T = rng.integers(0, 9, 60).astype(np.int32)
    sentence_T = np.sort(rng.integers(0, 12, 60)).astype(np.int32)
    centre_C, radius_C = rng.permutation(60), rng.integers(1, 5, 60)
    of_P, context_P = windows(token_T, sentence_T, centre_C, radius_C)
    found: list[list[int]] = [[] for _ in range(60)]
    for of, context in zip(of_P.tolist(), context_P.tolist(), strict=True):
        found[of].append(context)
    assert found == naive_windows(token_T.tolist(), sentence_T.tolist(), centre_C.tolist(), radius_C.tolist())
    assert (np.diff(of_P) >= 0).all()


@pytest.mark.parametrize("architecture", ["skip-gram", "cbow"])
def test_an_epoch_is_every_token_with_a_radius_up_to_the_window(architecture: Architecture) -> None:
    """With every word once in the text, what a batch holds says from which token and radius it came."""
    corpus = Corpus.of([[f"w{i}" for i in range(20)], ["alone"], [f"v{i}" for i in range(7)]], min_count=1)
    batches = WindowBatches(corpus, architecture=architecture, batch_size=8, window=3, sample=0)
    token, sentence = corpus.token_T.tolist(), corpus.sentence_T.tolist()
    radii, centres = [], []
    for batch in batches.epoch(0):
        if architecture == "skip-gram":
            centre_B, context = (
                batch.query_B,
                [batch.item_P[batch.of_P == b].tolist() for b in range(len(batch.query_B))],
            )
        else:
            bag = batch.query[WINDOW]
            assert isinstance(bag, Ragged)
            centre_B, context = batch.item_P, [bag.slice(b, b + 1).value.tolist() for b in range(len(bag))]
        for centre, words in zip(centre_B.tolist(), context, strict=True):
            at = token.index(centre)
            radius = max(abs(token.index(word) - at) for word in words)
            assert [words] == naive_windows(token, sentence, [at], [radius])
            radii.append(radius)
            centres.append(centre)
    assert sorted(centres) == sorted(set(token) - {corpus.word_V.index("alone")})
    assert set(radii) == {1, 2, 3}


def test_epochs_differ_and_repeat_by_seed() -> None:
    corpus = Corpus.of(two_topics(40), min_count=1)

    def items(seed: int, epoch: int) -> list[int]:
        batches = WindowBatches(corpus, architecture="cbow", batch_size=64, window=2, sample=0.1, seed=seed)
        return torch.cat([batch.item_P for batch in batches.epoch(epoch)]).tolist()

    assert items(0, 0) == items(0, 0)
    assert items(0, 0) != items(0, 1)
    assert items(0, 0) != items(1, 0)


# ---------------------------------------------------------------- one step


def model_of(arm: str, n_words: int, dim: int = 6) -> Model:
    """In float64, with vectors of size one, so that no gradient is small."""
    settings = Settings(dim=dim, negative=3)
    run = run_of(ARMS[arm], settings)
    corpus = corpus_of_counts([n_words - w for w in range(n_words)])
    batches = WindowBatches(corpus, architecture=ARMS[arm].architecture, batch_size=8, window=2, sample=0)
    model = Model(run, Words.of(run.schema, n_words), batches.facts()).double()
    rng = np.random.default_rng(1)
    for table in model.named_tables().values():
        table.weight.copy_(torch.from_numpy(rng.standard_normal(table.weight.shape)))
    return model


CENTRE, WINDOWS = torch.tensor([4, 0, 4]), [[0, 1], [3], [5, 1, 1, 2]]
CONTEXT = Ragged(offset=torch.tensor([0, 2, 3, 7]), value=torch.tensor([0, 1, 3, 5, 1, 1, 2]))


def in_double(batch: Batch) -> Batch:
    """The same batch with numbers of float64."""
    query = {
        name: replace(column, weight=column.weight.double()) if isinstance(column, Ragged) else column
        for name, column in batch.query.items()
    }
    return replace(batch, query=query, weight_P=batch.weight_P.double())


def gradients(model: Model, name: str) -> np.ndarray:
    """[rows, D] of a table, zeros where no gradient came."""
    table = model.named_tables()[name]
    found = table.gradient()
    assert found is not None
    return torch.zeros_like(table.weight).index_copy_(0, *found).numpy()


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("arm", ["sg-ns", "cbow-ns"])
def test_gradients_are_those_of_word2vecs_loop(arm: str) -> None:
    """The loop of word2vec.c: (label - sigmoid(s)) times the other vector, for the target and each noise word that is
    not one; a CBOW context gets the gradient of its mean. A skip-gram window shares its noise, three a pair on average.
    """
    model = model_of(arm, n_words=7)
    batch = in_double(skip_gram(CENTRE, CONTEXT) if arm == "sg-ns" else cbow(CENTRE, CONTEXT))
    query_BD = model.towers.encode_query(batch.query)
    look = CurrentModel(model, query_BD, 1)
    candidates = propose(model.negatives, batch, look, torch.Generator().manual_seed(10))
    loss, _ = model.loss(encode(query_BD, model.items, batch, candidates))
    loss.backward()

    in_VD, out_VD = (model.named_tables()[name].weight.numpy() for name in (IN, OUT))
    drawn = candidates.blocks[0].row.tolist()
    assert len(drawn[0]) == (3 * 6 if arm == "sg-ns" else 3)
    asked = WINDOWS if arm == "cbow-ns" else [[centre] for centre in CENTRE.tolist()]
    targets = WINDOWS if arm == "sg-ns" else [[centre] for centre in CENTRE.tolist()]
    total, of_in, of_out = 0.0, np.zeros_like(in_VD), np.zeros_like(out_VD)
    n_pairs = sum(map(len, targets))
    for b in range(3):
        query_D = sum(in_VD[word] for word in asked[b]) / len(asked[b])
        noise = [word for word in drawn[b] if word not in targets[b]]
        weight = 3 / len(noise) if arm == "sg-ns" else 1
        for target in targets[b]:
            error_D = np.zeros(6)
            for word, label, w in [(target, 1, 1), *((word, 0, weight) for word in noise)]:
                score = float(query_D @ out_VD[word])
                total -= w * math.log(sigmoid(score if label else -score))
                error_D += w * (sigmoid(score) - label) * out_VD[word]
                of_out[word] += w * (sigmoid(score) - label) * query_D / n_pairs
            for word in asked[b]:
                of_in[word] += error_D / len(asked[b]) / n_pairs
    assert any(word in targets[b] for b in range(3) for word in drawn[b])  # or nothing was left out
    assert loss.item() == pytest.approx(total / n_pairs, abs=1e-9)
    np.testing.assert_allclose(gradients(model, IN), of_in, atol=1e-9)
    np.testing.assert_allclose(gradients(model, OUT), of_out, atol=1e-9)


def test_a_cbow_query_is_the_mean_of_its_context() -> None:
    model = model_of("cbow-ns", n_words=7)
    in_VD = model.named_tables()[IN].weight.numpy()
    found_BD = model.towers.encode_query(in_double(cbow(CENTRE, CONTEXT)).query).detach().numpy()
    for b, window in enumerate(WINDOWS):
        np.testing.assert_allclose(found_BD[b], sum(in_VD[word] for word in window) / len(window), atol=1e-6)


def test_known_to_a_centre_is_its_window() -> None:
    known = skip_gram(CENTRE, CONTEXT).known
    assert [known.slice(b, b + 1).value.tolist() for b in range(3)] == [[0, 1], [3], [1, 2, 5]]
    known = cbow(CENTRE, CONTEXT).known
    assert [known.slice(b, b + 1).value.tolist() for b in range(3)] == [[4], [0], [4]]


# ---------------------------------------------------------------- scores


def test_rank_correlation_is_that_of_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 12, 200).astype(float), rng.standard_normal(200)  # x is full of ties
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x, y)[0], abs=1e-12)
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 11.0])) == pytest.approx(1.0)


def test_similarity_ranks_cosines_of_rated_pairs(tmp_path: Path) -> None:
    path = tmp_path / "pairs.tsv"
    path.write_text("# a comment\nA\tb\t9.0\nA\tc\t5.5\na\td\t1\na\tmissing\t10\n")
    pairs = read_rated_pairs(path)
    assert pairs == [("a", "b", 9.0), ("a", "c", 5.5), ("a", "d", 1.0), ("a", "missing", 10.0)]
    vector_VD = np.array([[1, 0], [2, 0.1], [1, 1], [0, 5]], np.float32)  # cosines with a: near 1, .71, 0
    row_of = {"a": 0, "b": 1, "c": 2, "d": 3}
    assert covered(pairs, row_of) == pairs[:3]
    assert similarity(vector_VD, row_of, pairs[:3]) == pytest.approx(1.0)
    assert similarity(-vector_VD * [[-1], [1], [1], [1]], row_of, pairs[:3]) == pytest.approx(-1.0)


def test_planted_analogies_are_found(tmp_path: Path) -> None:
    path = tmp_path / "questions.txt"
    path.write_text(": royal\nKing Queen man Woman\nking man queen woman\nking queen man far\nking queen man missing\n")
    questions = read_analogies(path)
    assert questions[0] == ("king", "queen", "man", "woman")
    words = ["king", "queen", "man", "woman", "far"]
    row_of = {word: row for row, word in enumerate(words)}
    assert covered(questions, row_of) == questions[:3]
    # royal and female are axes; queen - king + man is near woman, and nearest of all is man itself, which is left out
    vector_VD = np.array([[1, 0, 5], [1, 1, 5], [0, 0, 5], [0, 1, 5], [0, 0, -1]], np.float32)
    assert analogies(vector_VD, row_of, questions[:3]) == pytest.approx(2 / 3)
    assert analogies(vector_VD, row_of, questions[:3], chunk=2) == pytest.approx(2 / 3)


def test_the_tests_of_shared_data_are_whole() -> None:
    folder = data_folder() / "words"
    if not folder.exists():
        pytest.skip(f"words: the corpus and tests are not at {folder}; set TWOTOWER_DATA to the folder that holds it")
    assert len(read_rated_pairs(folder / "wordsim353.tsv")) == 353
    assert len(read_rated_pairs(folder / "simlex999.txt")) == 999
    assert len(read_analogies(folder / "questions-words.txt")) == 19_544  # as published


# ---------------------------------------------------------------- all of it


def cosines(vector_VD: np.ndarray, corpus: Corpus) -> tuple[float, float]:
    """The least inside a topic, and the greatest between the two."""
    row_of = {word: row for row, word in enumerate(corpus.word_V)}
    unit_VD = vector_VD / np.linalg.norm(vector_VD, axis=1, keepdims=True)
    river, harbour = unit_VD[[row_of[w] for w in RIVER]], unit_VD[[row_of[w] for w in HARBOUR]]
    return float(min((side @ side.T).min() for side in (river, harbour))), float((river @ harbour.T).max())


@pytest.mark.parametrize("name", list(ARMS))
def test_words_of_one_topic_come_together(name: str) -> None:
    corpus = Corpus.of(two_topics(150), min_count=5)
    made = train(corpus, replace(ARMS[name], batch_size=64), Settings(dim=8, window=3, sample=0, epochs=4))
    inside, between = cosines(made.vector_VD, corpus)
    assert inside > between + 0.5


def test_the_same_seed_gives_the_same_vectors() -> None:
    corpus = Corpus.of(two_topics(20), min_count=1)
    first, again, other = (
        train(corpus, ARMS["sg-ns"], Settings(dim=4, epochs=2), seed=seed).vector_VD for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_gensim_gets_the_same_sentences(tmp_path: Path) -> None:
    corpus = Corpus.of([["a", "rare", "b"], ["b", "a", "b"], ["odd"]], min_count=2)
    write_sentences(corpus, tmp_path / "text")
    assert (tmp_path / "text").read_text() == "a b\nb a b\n"
    topics = Corpus.of(two_topics(), min_count=5)
    made = train_gensim(topics, ARMS["sg-ns"], Settings(dim=8, window=3, sample=0, epochs=30), threads=1, seed=0)
    inside, between = cosines(made.vector_VD, topics)
    assert inside > between


def test_command_prints_tables_and_ends_with_a_line_of_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "corpus.txt.gz").write_bytes(gzip.compress("\n".join(" ".join(s) for s in two_topics()).encode()))
    pairs = "water\tbank\t9\nship\tdock\t8\nwater\tship\t1\nrope\tfish\t2\n"
    (folder / "wordsim353.tsv").write_text(pairs)
    (folder / "simlex999.txt").write_text(pairs)
    (folder / "questions-words.txt").write_text(": none\nwater bank ship dock\nwater bank ship sea\n")
    monkeypatch.setenv("TWOTOWER_DATA", str(tmp_path))
    measure(["cbow-ns"], Settings(dim=8, epochs=2), seeds=2)
    out = capsys.readouterr().out
    assert "1,800 tokens of 8 words" in out
    line = json.loads(out.strip().splitlines()[-1])
    assert line["benchmark"] == "word2vec"
    assert set(line["metrics"]["cbow-ns"]) == {"ours", "gensim"}
    assert set(line["metrics"]["cbow-ns"]["ours"]) == {"wordsim", "simlex", "analogies", "words_per_s"}
    assert line["metrics"]["covered"] == {"wordsim": 1.0, "simlex": 1.0, "analogies": 0.5}
    assert line["settings"]["seeds"] == 2


def test_without_the_data_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOTOWER_DATA", str(tmp_path))
    with pytest.raises(SystemExit, match=r"wordsim353\.tsv.*set TWOTOWER_DATA"):
        measure(["cbow-ns"], Settings(), seeds=1)
