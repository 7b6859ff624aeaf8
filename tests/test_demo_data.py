"""The demo data is whole and split as documented, and the script that makes it reads apt's metadata right."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "src" / "twotower" / "demo"

APT_SAMPLE = """\
Package: zebra
Version: 1.0-1
Installed-Size: 120
Architecture: amd64
Depends: libc6 (>= 2.34), python3:any | python2 [amd64], mail-transport-agent, zebra-data (>= 1.0),
 zebra-data (<= 1.0-1), zebra
Pre-Depends: libc6 (>= 2.30) <!nocheck>
Recommends: apple, libfoo++1 | apple
Suggests: zebra-data, nowhere | apple
Description: striped
 A long description, which is left out.
 .
 Depends: on nothing
Description-md5: d943033bedada21853d2ae54a2578a7b
Tag: role::program, use::gameplaying,
 interface::x11
Section: games

Package: libc6
Installed-Size: 13000
Provides: libc
Description-en: GNU C Library: Shared libraries
Section: libs

Package: python3
Section: python
Description: interactive language
Depends: libc6 (= 2.36)

Package: python2
Section: python

Package: apple
Section: fruit
Provides: mail-transport-agent
Suggests: fruit-tool

Package: libfoo++1
Section: libs

Package: zebra-data
Section: games

Package: fruit-tool
Section: contrib/fruit
Depends: apple

Package: libc6
Architecture: i386
Section: libs
Depends: apple
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "make_debian_links.py"
    spec = importlib.util.spec_from_file_location("make_debian_links", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def packages() -> pa.Table:
    return pq.read_table(DEMO / "packages.parquet")


@pytest.fixture(scope="module")
def links() -> pa.Table:
    return pq.read_table(DEMO / "links.parquet")


# The files that ship


def test_counts_are_those_of_the_readme(packages: pa.Table, links: pa.Table) -> None:
    readme = (DEMO / "README.md").read_text(encoding="utf-8")
    counts = [
        packages.num_rows,
        links.num_rows,
        *(n for column in ("relation", "split") for n in _count(links, column).values()),
    ]
    assert counts[:2] == [63_666, 300_368]
    missing = [count for count in counts if f"{count:,}" not in readme]
    assert not missing


def test_columns(packages: pa.Table, links: pa.Table) -> None:
    assert [(f.name, str(f.type)) for f in packages.schema] == [
        ("package", "string"),
        ("section", "string"),
        ("description", "string"),
        ("tags", "list<element: string>"),
        ("size", "int32"),
    ]
    assert [(f.name, str(f.type)) for f in links.schema] == [(name, "string") for name in links.column_names]
    assert links.column_names == ["package", "target", "relation", "split"]
    assert set(_count(links, "relation")) == {"Pre-Depends", "Depends", "Recommends", "Suggests"}


def test_rows_are_sorted_and_distinct(packages: pa.Table, links: pa.Table) -> None:
    names = packages["package"].to_pylist()
    assert names == sorted(set(names))
    pairs = list(zip(links["package"].to_pylist(), links["target"].to_pylist(), strict=True))
    assert pairs == sorted(set(pairs))


def test_both_ends_of_a_link_are_packages_and_differ(packages: pa.Table, links: pa.Table) -> None:
    for end in ("package", "target"):
        assert pc.all(pc.is_in(links[end], value_set=packages["package"])).as_py()
    assert not pc.any(pc.equal(links["package"], links["target"])).as_py()


def test_packages_are_held_out_whole_by_the_hash_of_their_name(links: pa.Table) -> None:
    split_of = dict(zip(links["package"].to_pylist(), links["split"].to_pylist(), strict=True))
    distinct = links.select(["package", "split"]).group_by(["package", "split"]).aggregate([])
    assert distinct.num_rows == len(split_of)  # no package in two splits
    for name, split in split_of.items():
        place = int(hashlib.blake2b(name.encode(), digest_size=8).hexdigest(), 16)
        expected = "test" if place < 2**64 * 0.10 else "valid" if place < 2**64 * 0.15 else "train"
        assert split == expected, name


def test_split_shares(links: pa.Table) -> None:
    share = {
        split: count / 57_055
        for split, count in _count(links.group_by(["package", "split"]).aggregate([]), "split").items()
    }
    # three standard deviations of a binomial share: sqrt(.1 * .9 / 57,055) = .00126
    assert share["test"] == pytest.approx(0.10, abs=0.0038)
    assert share["valid"] == pytest.approx(0.05, abs=0.0038)
    assert sum(share.values()) == pytest.approx(1.0)


def test_it_is_small_enough_to_ship_and_says_its_licence() -> None:
    assert sum(path.stat().st_size for path in DEMO.glob("*.parquet")) < 5_000_000
    assert "## Licence" in (DEMO / "README.md").read_text(encoding="utf-8")


# The script that makes them


def test_links_of_a_sample(script: ModuleType) -> None:
    data = script.link_data(script.read_stanzas(APT_SAMPLE.splitlines()))
    assert [(link.package, link.target, link.relation) for link in data.links] == [
        ("python3", "libc6", "Depends"),
        ("zebra", "apple", "Recommends"),  # Recommends is stronger than Suggests
        ("zebra", "libc6", "Pre-Depends"),  # and Pre-Depends than Depends
        ("zebra", "libfoo++1", "Recommends"),
        ("zebra", "python2", "Depends"),
        ("zebra", "python3", "Depends"),
        ("zebra", "zebra-data", "Depends"),
    ]
    assert dict(data.left_out) == {
        "packages of contrib and non-free": 1,  # fruit-tool
        "packages seen before": 1,  # libc6 of i386, and its link with it
        "links to itself": 1,
        "links to what is no package here (virtual, other release)": 3,  # mail-transport-agent, nowhere, fruit-tool
        "links named again": 5,  # libc6; zebra-data in Depends and in Suggests; apple in Recommends and in Suggests
    }


def test_packages_of_a_sample(script: ModuleType) -> None:
    data = script.link_data(script.read_stanzas(APT_SAMPLE.splitlines()))
    by_name = {package.package: package for package in data.packages}
    assert list(by_name) == ["apple", "libc6", "libfoo++1", "python2", "python3", "zebra", "zebra-data"]
    zebra = by_name["zebra"]
    assert zebra.description == "striped"
    assert zebra.tags == ("interface::x11", "role::program", "use::gameplaying")
    assert (zebra.section, zebra.size) == ("games", 120)
    assert by_name["libc6"].description == "GNU C Library: Shared libraries"
    assert (by_name["python2"].description, by_name["python2"].tags, by_name["python2"].size) == (None, (), None)


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("", []),
        ("libc6", ["libc6"]),
        ("libc6 (>= 1.2)", ["libc6"]),
        ("libc6(>=1.2)", ["libc6"]),
        ("python3:any (>= 3.11~), perl:native", ["python3", "perl"]),
        ("a1 | b2 (<< 1:2.0-1) | c3 [amd64 i386] <!nocheck>", ["a1", "b2", "c3"]),
        ("g++-12,\nlibstdc++6", ["g++-12", "libstdc++6"]),
        ("0ad, 0ad-data (<= 0.0.26-3),", ["0ad", "0ad-data"]),
    ],
)
def test_relation_fields(script: ModuleType, field: str, expected: list[str]) -> None:
    assert script.parse_relation(field) == expected


def test_same_bytes_whatever_the_order_of_the_input(script: ModuleType, tmp_path: Path) -> None:
    stanzas = APT_SAMPLE.strip().split("\n\n")[:-1]  # without the second libc6: of two, the first one counts
    written = []
    for run in range(3):
        random.Random(run).shuffle(stanzas)
        available, out = tmp_path / f"available-{run}", tmp_path / f"out-{run}"
        available.write_text("\n\n".join(stanzas) + "\n", encoding="utf-8")
        assert script.main(["--available", str(available), "--out", str(out)]) == 0
        written.append([(out / name).read_bytes() for name in ("links.parquet", "packages.parquet")])
    assert written[0] == written[1] == written[2]


def test_written_files_have_the_columns_of_those_that_ship(
    script: ModuleType, tmp_path: Path, packages: pa.Table, links: pa.Table
) -> None:
    available = tmp_path / "available"
    available.write_text(APT_SAMPLE, encoding="utf-8")
    script.main(["--available", str(available), "--out", str(tmp_path)])
    assert pq.read_schema(tmp_path / "packages.parquet").equals(packages.schema)
    assert pq.read_schema(tmp_path / "links.parquet").equals(links.schema)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Package: a\nno field\n", "line 2 is 'no field'"),
        (" continued\n", "line 1 is"),
        ("Section: libs\n", "stanza 1 has the fields ['Section'], expected a Package"),
        ("Package: a\n", "apt-get update"),
    ],
)
def test_what_is_no_package_list_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    available = tmp_path / "available"
    available.write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        script.main(["--available", str(available), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_file_is_named(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.main(["--available", str(tmp_path / "absent"), "--out", str(tmp_path)])
    assert f"{tmp_path / 'absent'} not found" in capsys.readouterr().err


def _count(table: pa.Table, column: str) -> dict[str, int]:
    return {row["values"]: row["counts"] for row in pc.value_counts(table[column]).to_pylist()}
