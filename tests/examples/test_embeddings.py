"""`python -m examples.embeddings`: every paragraph is embedded once, in few calls, in spite of the crash."""

from pathlib import Path

import numpy as np
import pytest

from examples.embeddings import CRASH_AT, Embedded, Embedding, Model, embed, nearest, paragraphs
from tests.programs import Program


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


async def test_each_vector_once_and_as_if_asked_one_by_one(model: Model) -> None:
    texts, embedding = list(paragraphs()), Embedding(model)
    assert len(texts) > CRASH_AT + 100
    found = await embed(texts, embedding, crash=True)
    assert [each.paragraph for each in found] == texts
    assert np.allclose([each.vector for each in found], model.embed([each.text for each in texts]), atol=1e-5)
    assert len(embedding.sizes) < len(texts) / 4 and max(embedding.sizes) == 64
    assert sum(embedding.sizes) > len(texts)  # what was in process at the crash was embedded again


def test_what_means_the_same_is_found(model: Model) -> None:
    texts = list(paragraphs())
    vectors = model.embed([each.text for each in texts])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    asked, alike, other = model.embed(["which error is raised", "the exception that occurs", "yellow bananas"])
    assert asked @ alike > asked @ other + 0.2
    found = [Embedded(each, vector) for each, vector in zip(texts, vectors, strict=True)]
    assert nearest(found, vectors[700], 1)[0].text == texts[700].text


@pytest.mark.slow
def test_the_program_searches(tmp_path: Path) -> None:
    wanted = "which exception is raised when an attribute is missing"
    with Program("-m", "examples.embeddings", "--find", wanted, cwd=tmp_path) as program:
        assert program.end() == 0, program.stderr
    assert "each once" in program.stdout and "after 1 restart" in program.stdout
    assert len(program.stdout.splitlines()) == 6
    assert "raise" in program.stdout.splitlines()[3]
