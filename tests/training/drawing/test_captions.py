import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import InputError
from training.drawing.captions import checked, read_captions

CAPTIONS = ["a cat", 'a "red" heart, big', "étoile"]


def test_every_kind_of_file_gives_its_captions_in_order(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n".join(CAPTIONS) + "\n\n", "utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": c}) + "\n" for c in CAPTIONS))
    rows = "\n".join(f'{i},"{c.replace(chr(34), chr(34) * 2)}"' for i, c in enumerate(CAPTIONS))
    (tmp_path / "a.csv").write_text(f"id,text\n{rows}\n", "utf-8")
    pq.write_table(pa.table({"text": CAPTIONS, "id": [1, 2, 3]}), tmp_path / "a.parquet")
    for suffix in ("txt", "jsonl", "csv", "parquet"):
        assert read_captions(str(tmp_path / f"a.{suffix}"), "text") == CAPTIONS


def test_mistakes_are_named(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("id,text\n1,cat\n2,\n")
    with pytest.raises(InputError, match="no column 'caption' \\(it has: id, text\\)"):
        read_captions(str(table), "caption")
    with pytest.raises(InputError, match=r"a\.csv: caption 2 is ''"):
        read_captions(str(table), "text")
    with pytest.raises(InputError, match=r"b\.txt: no such file"):
        read_captions(str(tmp_path / "b.txt"), "caption")
    with pytest.raises(InputError, match=r"'\.doc'; expected one of \.csv, \.jsonl"):
        read_captions(str(tmp_path / "b.doc"), "caption")
    (tmp_path / "c.jsonl").write_text("{")
    with pytest.raises(InputError, match=r"not a \.jsonl file"):
        read_captions(str(tmp_path / "c.jsonl"), "caption")
    with pytest.raises(InputError, match="no captions"):
        checked([], "captions")
