"""The embedded model on the first held-out videos, as `scripts/eval_embedded.py` scores it on all of them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from vstream.models.embedded import fetch
from vstream.models.embedded.adapter import EmbeddedAdapter

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import eval_embedded
from natural_set import natural_clips

pytestmark = pytest.mark.usefixtures("embedded_folder")
CLIPS = 3
LEAST_RIGHT, MOST_FALSE_YES = 0.5, 0.15


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_it_answers_about_the_video_that_it_saw():
    """Questions in wordings that training never uses, and the same ones after another video as the control."""
    clips, adapter = natural_clips(CLIPS), EmbeddedAdapter(fetch.embedded_dir())
    found = eval_embedded.summary(eval_embedded.examine(adapter, clips))
    control = eval_embedded.summary(eval_embedded.examine(adapter, clips, 1))
    assert found["all"]["questions"] > 60
    assert found["all"]["mean"] > LEAST_RIGHT
    assert found["false yes"]["mean"] <= MOST_FALSE_YES
    assert control["all"]["mean"] < found["all"]["mean"] - 0.2


@pytest.mark.slow
def test_the_last_line_is_json():
    command = [sys.executable, eval_embedded.__file__, "--only", "looks", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    last = json.loads(done.stdout.splitlines()[-1])
    looks = last["embedded"]["details"]["looks"]
    assert looks["place"] > 0.4
    assert 0 < looks["colours_said"] <= looks["pictures"]
    assert last["embedded"]["exact_match"] is None


@pytest.mark.slow
def test_scores_are_written_of_all_videos_alone():
    command = [sys.executable, eval_embedded.__file__, "--write", "--clips", "2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--write needs the part `trained` on all videos" in done.stderr
