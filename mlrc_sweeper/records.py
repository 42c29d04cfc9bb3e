"""One line of a ledger: a JSON object with its sequence number and a checksum."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# json.dumps would make one for each of a ledger's hundreds of lines
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


@dataclass(frozen=True)
class Record:
    """One line of the ledger.

    Attributes:
        seq: Position in the ledger, from 0.
        type: What happened.
        payload: The particulars, as JSON has them.
    """

    seq: int
    type: str
    payload: Mapping[str, Any]


def encode(record: Record) -> bytes:
    """Returns the record's line, whose checksum covers everything else in it.

    Raises:
        ValueError: A number of the payload is not finite.
    """
    body = {"seq": record.seq, "type": record.type, "payload": record.payload}
    text = _JSON.encode(body)
    return f'{text[:-1]},"crc":"{zlib.crc32(text.encode()):08x}"}}\n'.encode()


def decode(line: bytes) -> Record:
    """Returns the record of a line that lacks its line break.

    Raises:
        ValueError: The line is not what `encode` made of a record.
    """
    try:
        fields = json.loads(line)
        record = Record(fields["seq"], fields["type"], fields["payload"])
        # comparing the whole line finds changes that JSON would read over, such as a space
        is_intact = encode(record) == line + b"\n"
    except (ValueError, KeyError, TypeError, RecursionError):
        is_intact = False
    if not is_intact:
        raise ValueError("does not match its checksum")
    return record
