"""Is there a network, before ten thousand rows say that there is none?

Asks a few of a list's hosts, picked by a seed, for one file each, all at once. Any answer will do,
and a refusal too: somebody was there to refuse. Reads a sample of URLs, writes nothing.
"""

import random
from collections import Counter
from collections.abc import Iterable
from contextlib import closing

from infra.errors import ShortfallError
from pipeline.fetching.fetch import Failure, Fetcher, FetchSettings
from pipeline.fetching.web_address import WebAddress, parse_web_address

NUM_HOSTS = 16
TIMEOUT_S = 8.0
NUM_NAMED = 3


def preflight(urls: Iterable[str], settings: FetchSettings, seed: int = 0) -> None:
    """Raises ShortfallError within about ten seconds where not one host can be reached."""
    origins = sorted({address.host: address.origin for address in _addresses(urls)}.items())
    sample = sorted(random.Random(seed).sample(origins, min(NUM_HOSTS, len(origins))))
    if not sample:
        return  # a list of no URLs: each row says so
    asking = settings.model_copy(
        update={"retries": 0, "timeout": min(TIMEOUT_S, settings.timeout), "opt_outs": ()}
    )
    with closing(Fetcher(asking, num_connections=NUM_HOSTS)) as fetcher:
        asked = enumerate(f"{origin}/robots.txt" for _, origin in sample)
        answers = [answer for _, answer in fetcher.fetch_all(asked)]
    reasons = Counter(
        answer.reason if isinstance(answer, Failure) else "answered" for answer in answers
    )
    if reasons.keys() <= {"dns", "host unreachable", "timeout"}:
        raise ShortfallError(_message(reasons, [host for host, _ in sample], len(origins)))


def _addresses(urls: Iterable[str]) -> Iterable[WebAddress]:
    for url in urls:
        try:
            yield parse_web_address(url)
        except ValueError:
            continue  # the row that has it says so


def _message(reasons: Counter[str], hosts: list[str], num_hosts: int) -> str:
    asked = f"{len(hosts)} of the list's {num_hosts} hosts" if num_hosts > 1 else "its only host"
    named = ", ".join(hosts[:NUM_NAMED]) + (", ..." if len(hosts) > NUM_NAMED else "")
    if reasons.keys() == {"dns"}:
        return (
            f"DNS fails: asked for {asked} ({named}), and not one name could be resolved; "
            "see that this machine's resolver is right (/etc/resolv.conf) and run it again"
        )
    counted = ", ".join(f"{reason} ({num})" for reason, num in reasons.most_common())
    return (
        f"no network: asked {asked} ({named}), and not one answered: {counted}; "
        "see that this machine can reach the internet and run it again"
    )
