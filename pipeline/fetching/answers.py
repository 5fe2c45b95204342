"""What an answer means: the bytes, a failure of some class, or the address to go on to.

Reads and writes no files.
"""

from email.utils import parsedate_to_datetime

from pipeline.fetching.addresses import METADATA_HOSTS
from pipeline.fetching.fetch_settings import RETRYABLE_STATUSES, Failure, Fetched, FetchSettings
from pipeline.fetching.origins import Job
from pipeline.fetching.robots import BY_ROBOTS_TAG, BY_TDM_HEADER, is_disallowed, is_reserved
from pipeline.fetching.transfers import Answer, Headers
from pipeline.fetching.web_address import RefusedSchemeError, WebAddress, parse_web_address

REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
MAX_REDIRECTS = 5


def outcome_of(answer: Answer, job: Job) -> Fetched | Failure | WebAddress:
    if answer.failure is not None:
        return answer.failure
    location = answer.headers.get(b"location")
    if answer.status in REDIRECT_STATUSES and location:
        if job.num_redirects == MAX_REDIRECTS:
            return Failure("too many redirects")
        return target(location[0], job.address)
    if not 200 <= answer.status < 300:
        return Failure(
            f"http {answer.status}",
            retryable=answer.status in RETRYABLE_STATUSES,
            retry_after_s=_retry_after_s(answer.headers),
        )
    if not answer.data and not job.origin:
        return Failure("empty answer")
    return Fetched(answer.data)


def target(text: str, base: WebAddress | None = None) -> WebAddress | Failure:
    """Where a URL leads, or a redirect from `base`."""
    try:
        address = parse_web_address(text, base)
    except RefusedSchemeError:
        return Failure("refused scheme")
    except ValueError:
        return Failure("invalid url")
    return Failure("refused address") if address.host in METADATA_HOSTS else address


def refusal_by_headers(headers: Headers, settings: FetchSettings) -> Failure | None:
    """The opt-outs that come with the picture itself."""
    if "x-robots-tag" in settings.opt_outs and is_disallowed(
        headers.get(b"x-robots-tag", []),
        settings.user_agent_token,
        settings.disallowed_header_directives,
    ):
        return BY_ROBOTS_TAG
    if "tdm-header" in settings.opt_outs and is_reserved(headers.get(b"tdm-reservation", [])):
        return BY_TDM_HEADER
    return None


def _retry_after_s(headers: Headers) -> float | None:
    """Seconds, or a date, which is read by the server's own clock: ours may be wrong or jump."""
    value = headers.get(b"retry-after", [""])[0]
    if value.isdecimal():
        return float(value[:9])
    now = headers.get(b"date", [""])[0]
    try:
        seconds = (parsedate_to_datetime(value) - parsedate_to_datetime(now)).total_seconds()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds)
