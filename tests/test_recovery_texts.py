"""Text for training and for judging: nothing that is held out is trained on."""

import gzip
import re
import sys

import pytest

from prunekern.compare.text import default_text, token_windows
from prunekern.recovery import texts


class Words:
    """Tokens are words and what is between; offsets as fast tokenizers give them."""

    def __call__(self, text, return_tensors=None, return_offsets_mapping=False, verbose=True):
        import torch

        spans = [match.span() for match in re.finditer(r"\w+|\W", text)]
        ids = [hash(text[a:b]) % 997 for a, b in spans]
        result = type("Encoding", (dict,), {"__getattr__": dict.__getitem__})(input_ids=ids)
        if return_tensors:
            result["input_ids"] = torch.tensor([ids])
        if return_offsets_mapping:
            result["offset_mapping"] = spans
        return result


def flat(text):
    return " ".join(text.split())


def test_what_compare_measures_on_is_held_out():
    tokenizer = Words()
    documents, held = texts.python_documentation(tokenizer, windows=16, size=512)
    assert held.equal(token_windows(tokenizer, default_text(), 16, 512))
    spans = tokenizer(default_text(), return_offsets_mapping=True)["offset_mapping"]
    tail = default_text()[spans[-16 * 512][0] :]
    train = {flat(p) for text in documents for p in re.split(r"\n[ \t]*\n", text)}
    paragraphs = [flat(p) for p in re.split(r"\n[ \t]*\n", tail)]
    assert not [p for p in paragraphs if len(p) >= 40 and p in train]
    assert len(documents) > 60 and sum(map(len, documents)) > 300_000
    # The whole topic goes in which the held-out part begins, not only its end.
    first = paragraphs[1]
    topic = next(t for t in default_text().split("\n\n\n") if flat(first) in flat(t))
    assert flat(topic)[:200] not in flat("".join(documents))


def test_split_is_by_document_without_overlap():
    common = "This very paragraph stands in every one of the documents, whatever its name."
    documents = {
        f"{i}": f"Own text {i} of some length, longer than forty characters.\n\n{common}"
        for i in range(60)
    }
    documents["copy"] = documents["7"]
    parts = texts.split(documents, held_out=0.3)
    assert 8 < len(parts.held_out) < 30
    assert len(parts.train) + len(parts.held_out) == 60  # the copy once
    assert common not in "".join(parts.train) and common in parts.held_out[0]
    fewer = texts.split({k: v for k, v in documents.items() if k.isdigit() and int(k) % 2}, 0.3)
    assert set(fewer.held_out) <= set(parts.held_out)  # a document's side is its own
    with pytest.raises(ValueError, match=r"held_out must be a share in \(0, 1\), got 1"):
        texts.split(documents, 1)


def test_wrapping_does_not_hide_an_overlap_and_short_lines_stay():
    held = (
        "  A paragraph of more than forty characters,\n  wrapped and indented.\n\nNote:\n\nOther."
    )
    train = "A paragraph of more than\nforty characters, wrapped and indented.\n\nNote:\n\nKept."
    assert texts.without_paragraphs_of([train], [held]) == ("Note:\n\nKept.",)
    assert texts.without_paragraphs_of([held], [held.partition("Note")[0]]) == ("Note:\n\nOther.",)


def test_docstrings_are_read_without_an_import():
    before = "xmlrpc" in sys.modules
    documents = texts.docstrings("xmlrpc")
    assert documents.keys() >= {"xmlrpc/client.py", "xmlrpc/server.py"}
    assert "XML-RPC" in documents["xmlrpc/client.py"]
    assert ("xmlrpc" in sys.modules) == before
    for wrong in ("no_such_package", "sys"):
        with pytest.raises(ValueError, match="docstrings: package must be an installed one"):
            texts.docstrings(wrong)


def test_licences_are_there():
    found = texts.licences()
    assert any("WARRANT" in text.upper() for text in found.values())
    assert all("/" in name for name in found)


def test_man_pages_lose_their_markup(tmp_path):
    folder = tmp_path / "man1"
    folder.mkdir()
    page = (
        '.\\" a comment\n.TH LS 1 "May 2026"\n.SH NAME\nls \\- list directory contents\n'
        ".SH DESCRIPTION\n.PP\nList \\fIinformation\\fR about the\n.B FILE\nnow.\n.nf\n"
    )
    (folder / "ls.1.gz").write_bytes(gzip.compress(page.encode()))
    (folder / "dir.1").write_text(".so man1/ls.1\n")
    (folder / "bad.1.gz").write_bytes(b"not gzip")
    (folder / "latin.1").write_bytes(b"\xe9t\xe9")
    assert texts.man_pages(folder=tmp_path) == {
        "ls.1": "NAME\nls - list directory contents\n\nDESCRIPTION\n\nList information about the\n"
        "FILE\nnow."
    }
    assert texts.man_pages(folder=tmp_path / "none") == {}
