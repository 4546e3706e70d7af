"""Laws of the loop over random stories, read from nothing but the stream and the journal."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

from stillfit.loop import run
from stillfit.registry import Registry

_spec = importlib.util.spec_from_file_location("stories", Path(__file__).with_name("stories.py"))
stories = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stories)


def tell(seeds, folder):
    seen = Counter()
    for seed in seeds:
        story = stories.story(seed)
        with Registry.create(folder / str(seed)) as registry:
            steps = list(run(story.stream, story.plan, registry))
            assert [step.number for step in steps] == list(range(len(story.events)))
            try:
                seen.update(stories.check(story, registry))
            except AssertionError as error:
                raise AssertionError(f"story {seed}: {error}") from error
    return seen


def test_every_story_obeys_the_laws(tmp_path):
    seen = tell(range(16), tmp_path)
    # The stories are worth something only if everything happens in them.
    for kind in ("request", "declined", "refused", "call", "staged", "switch", "kept", "hold",
                 "rollback", "resume", "withdrawn", "alarm", "clear"):  # fmt: skip
        assert seen[kind] > 0, kind


@pytest.mark.study
def test_many_stories_obey_the_laws(tmp_path):
    tell(range(1000, 1400), tmp_path)
