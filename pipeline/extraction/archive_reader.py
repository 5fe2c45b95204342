"""One archive -> its runs of pairs and the record of what it gave."""

from collections import Counter

from infra import storage
from infra.errors import DamagedError
from pipeline.extraction.archives import Archive
from pipeline.extraction.extract_records import PAIRS, ArchiveRecord, record_url, spool_url
from pipeline.extraction.pair_dedup import RunWriter
from pipeline.extraction.warc import read_pages
from pipeline.extraction.web_images import Page, base_url_of, pair_of

MISSING = "missing"
PAGES = "pages with pictures"


class ArchiveReader:
    """Writes the runs and, last, the record; a damaged archive's tell what came before."""

    def __init__(self, root: str, min_characters: int, max_page_bytes: int) -> None:
        self._root, self._min_characters = root, min_characters
        self._max_page_bytes = max_page_bytes

    def __call__(self, archive: Archive) -> ArchiveRecord:
        images, records = Counter[str](), Counter[str]()
        writer = RunWriter(spool_url(self._root), archive.key)
        damage = None
        try:
            for page in read_pages(archive.url, self._max_page_bytes, records):
                records[PAGES] += 1
                self._add(page, archive.name, writer, images)
        except FileNotFoundError:
            damage = MISSING
        except DamagedError as error:
            damage = str(error)
        writer.flush()
        record = ArchiveRecord(
            archive=archive.name,
            size_bytes=0 if damage == MISSING else storage.size_bytes(archive.url),
            damage=damage,
            runs=tuple(writer.runs),
            images=dict(images),
            records=dict(records),
        )
        text = record.model_dump_json(indent=2) + "\n"
        storage.publish_text(record_url(self._root, archive.key), text)
        return record

    def _add(self, page: Page, archive: str, writer: RunWriter, images: Counter[str]) -> None:
        base = base_url_of(page.url, page.base)
        for image in page.images:
            pair = pair_of(image, base, self._min_characters)
            if isinstance(pair, str):
                images[pair] += 1
                continue
            images[PAIRS] += 1
            provenance = (page.url, page.record_id, page.warc_file, page.warc_offset, archive)
            writer.add((*pair, *provenance))
