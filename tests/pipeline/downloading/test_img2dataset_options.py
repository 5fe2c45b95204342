"""img2dataset's command lines, as its users have them, become downloads here."""

import ast
import shlex
from importlib.metadata import files
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import carrara
from infra.errors import ConfigError
from pipeline.corpus import read_manifest
from pipeline.download import Config
from pipeline.downloading.img2dataset_options import (
    OF_WORKERS,
    REFUSED,
    RENAMED,
    WITHOUT_MEANING,
    config_of,
)

if TYPE_CHECKING:
    from tests.pipeline.conftest import Site

ISSUE = """--url_list=list.parquet --input_format parquet --url_col URL --caption_col TEXT
    --output_format webdataset --output_folder out --processes_count 2 --thread_count 64
    --image_size 256 --resize_only_if_bigger=True --resize_mode="keep_ratio" --skip_reencode=True
    --save_additional_columns '["similarity","hash"]' --enable_wandb False
    --number_sample_per_shard 10000 --distributor ray --incremental_mode incremental
    --max_shard_retry 1 --retries 2 --timeout 10 --compute_hash sha256
    --verify_hash '["hash","md5"]' --disallowed_header_directives '[]' --user_agent_token x
    --encode_quality 95 --encode_format jpg --min_image_size 0 --max_image_area inf
    --max_aspect_ratio inf --oom_shard_count 6 --subjob_size 1000"""

LAION = '"similarity","hash","punsafe","pwatermark"'
RATIO = """--image_size 384 --resize_only_if_bigger=True --resize_mode="keep_ratio"
    --skip_reencode=True"""
# The options of img2dataset's dataset_examples, by the data sets' names.
EXAMPLES = {
    "cc3m": """--url_list cc3m.tsv --input_format "tsv" --url_col "url" --caption_col "caption"
        --output_format webdataset --output_folder cc3m --processes_count 16 --thread_count 64
        --image_size 256 --enable_wandb True --user_agent_token img2dataset
        --disallowed_header_directives '["noai", "noindex"]'""",
    "coyo-700m": f"""--url_list coyo-700m --input_format "parquet" --url_col "url"
        --caption_col "text" --output_format webdataset --output_folder coyo --processes_count 16
        --thread_count 64 {RATIO} --save_additional_columns
        '["clip_similarity_vitb32","watermark_score"]' --enable_wandb False""",
    "laion400m": """--url_list laion400m-meta --input_format "parquet" --url_col "URL"
        --caption_col "TEXT" --output_format webdataset --output_folder laion400m-data
        --processes_count 16 --thread_count 128 --image_size 256
        --save_additional_columns '["NSFW","similarity","LICENSE"]' --enable_wandb True""",
    "laion-aesthetic": f"""--url_list laion2B --input_format "parquet" --url_col "URL"
        --caption_col "TEXT" --output_format webdataset --output_folder out --processes_count 16
        --thread_count 64 {RATIO} --save_additional_columns '[{LAION},"aesthetic"]'
        --enable_wandb True""",
    "laion-art, directives ignored": f"""--url_list laion-art --input_format "parquet"
        --url_col "URL" --caption_col "TEXT" --output_format webdataset --output_folder out
        --processes_count 16 --thread_count 64 {RATIO} --save_additional_columns
        '[{LAION},"aesthetic","LANGUAGE"]' --enable_wandb True --user_agent_token img2dataset
        --disallowed_header_directives '[]'""",
    "laion-coco": f"""--url_list laion-coco --input_format "parquet" --url_col "URL"
        --caption_col "TEXT" --output_format webdataset --output_folder out --processes_count 16
        --thread_count 64 --image_size 256 --resize_only_if_bigger=True
        --resize_mode="keep_ratio" --skip_reencode=True --save_additional_columns
        '[{LAION},"top_caption","all_captions","all_similarities"]' --enable_wandb True""",
    "laion5B": """--processes_count=1 --thread_count=64 --url_list s3://metadata/laion2B-en/
        --image_size=384 --resize_only_if_bigger=True --resize_mode=keep_ratio
        --skip_reencode=True --output_folder s3://data/laion2B --output_format=webdataset
        --input_format=parquet --url_col=URL --caption_col=TEXT --enable_wandb=True
        --number_sample_per_shard=10000 --distributor=pyspark
        --save_additional_columns '["NSFW","similarity","LICENSE"]' --oom_shard_count=6
        --user_agent_token=img2dataset --disallowed_header_directives '["noai", "noindex"]'""",
    "mscoco": """--url_list mscoco.parquet --input_format "parquet" --url_col "URL"
        --caption_col "TEXT" --output_format webdataset --output_folder mscoco
        --processes_count 16 --thread_count 64 --image_size 256 --enable_wandb True""",
    "SBU": """--url_list sbu-captions-all.json --input_format "json" --url_col "image_urls"
        --caption_col "captions" --output_format webdataset --output_folder sbucaptions
        --processes_count 16 --thread_count 64 --image_size 256""",
}


def parse(line: str) -> Config:
    return config_of(shlex.split(line))


def test_the_whole_of_its_options_means_here_what_it_means_there() -> None:
    config = parse(ISSUE)
    assert (config.url_column, config.caption_column) == ("URL", "TEXT")
    assert Path(config.root).name == "out"
    assert (config.workers.num_workers, config.workers.max_retries) == (2, 1)
    assert (config.image_size, config.resize_mode, config.skip_reencode) == (
        256,
        "keep_ratio",
        True,
    )
    assert config.save_additional_columns == ("similarity", "hash")
    assert config.verify_hash == ("hash", "md5")
    assert config.disallowed_header_directives == ()
    assert config.oom_shard_count == 6
    assert config.max_aspect_ratio is None
    assert config.user_agent_token == "x"


@pytest.mark.parametrize("name", EXAMPLES)
def test_its_examples_are_understood(name: str) -> None:
    config = parse(EXAMPLES[name])
    assert config.caption_column in {"TEXT", "caption", "captions", "text"}


def test_every_option_of_img2dataset_is_known() -> None:
    (main,) = (file for file in files("img2dataset") or () if file.name == "main.py")
    (download,) = (  # read, not imported: the package loads all that it has
        node
        for node in ast.parse(main.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "download"
    )
    options = {argument.arg for argument in download.args.args}
    known = {*RENAMED, *OF_WORKERS, *WITHOUT_MEANING, *REFUSED, *Config.model_fields}
    assert options - known == {"output_format"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--output_format files", "--output_format files: expected webdataset"),
        ("--output_format tfrecord", "expected webdataset"),
        ("", "--output_format files .img2dataset's default.: expected webdataset"),
        ("--output_format webdataset --bbox_col faces", "--bbox_col: can't be honoured"),
        ("--output_format webdataset --disable_all_reencoding True", "can't be honoured"),
        ("--output_format webdataset --image_sise 3", "did you mean --image_size"),
        ("--output_format webdataset --resize_mode round", "--resize_mode 'round': "),
        ("--output_format webdataset --incremental_mode sometimes", "--incremental_mode"),
        ("--output_format webdataset --processes_count 0", "--processes_count 0: "),
        ("--output_format webdataset --max_shard_retry -1", "--max_shard_retry -1: "),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_line(options: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse(f"--url_list a.txt --output_folder out {options}")
    assert "\n" not in str(caught.value)


def test_what_means_nothing_here_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    parse(EXAMPLES["laion5B"])
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "--enable_wandb is ignored" in said
    assert "--distributor is ignored" in said


def test_its_command_makes_a_corpus(site: "Site", tmp_path: Path) -> None:
    urls = [site.picture(i) for i in range(5)]
    hashes = ["0" * 32] * 5
    table = pa.table({"URL": urls, "TEXT": [f"picture {i}" for i in range(5)], "hash": hashes})
    pq.write_table(table, tmp_path / "list.parquet")
    line = f"""--url_list={tmp_path}/list.parquet --input_format parquet --url_col URL
        --caption_col TEXT --output_format webdataset --output_folder {tmp_path}/out
        --processes_count 1 --thread_count 8 --image_size 24 --number_sample_per_shard 2
        --save_additional_columns '["hash"]' --enable_wandb True
        --allow_hosts '["127.0.0.1"]'"""
    assert carrara.run_img2dataset(shlex.split(line)) == 0
    manifest = read_manifest(str(tmp_path / "out"))
    assert [shard.name for shard in manifest.shards] == ["00000", "00001", "00002"]
    assert manifest.counts == {"success": 5}
    assert (
        pq.read_table(tmp_path / "out" / "shards" / "00000.parquet")["hash"].to_pylist()
        == ["0" * 32] * 2
    )
