"""Another user plants weights and settings in /tmp/.keras, where Keras looks if it cannot write to the user's folder.

Nobody computes in a mount namespace of the test's own, with a /tmp of its own, so that the real one stays as it is.
"""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from backbones.conftest import FILE, NAME, save
from tiny import write_images

from featcache.cache.reader import Cache
from featcache.extraction import extract

pytestmark = pytest.mark.slow

NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"]


@pytest.fixture
def as_nobody(tmp_path):
    """Return a folder that becomes /tmp, and a function that runs a command as nobody, in that /tmp."""
    if os.geteuid() != 0 or not (shutil.which("setpriv") and shutil.which("unshare")):
        pytest.skip("needs root, setpriv and unshare")
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)

    def run(*command, home="/tmp/keras", **variables):
        script = f'mount --bind {folder} /tmp && cd /tmp && exec "$@"'
        environment = {**os.environ, **variables, "HOME": "/tmp/home", "TMPDIR": "/tmp"}
        environment.pop("KERAS_HOME", None)
        if home:
            environment["KERAS_HOME"] = home
        whole = ["unshare", "-m", "bash", "-c", script, "bash", *NOBODY, *command]
        return subprocess.run(whole, env=environment, capture_output=True, text=True, check=False)

    if run(sys.executable, "-c", "import featcache").returncode != 0:
        pytest.skip("cannot mount, or nobody may not run this Python")
    return folder, run


@pytest.mark.parametrize("home", ["/tmp/keras", None])
def test_nobody_gets_the_features_of_the_weights_that_may_only_be_read(as_nobody, tmp_path, monkeypatch, home):
    folder, run = as_nobody
    write_images(folder / "photos", per_class=4)
    own = folder / (home or "/tmp/home/.keras").removeprefix("/tmp/")
    (own / "models").mkdir(parents=True)
    save(own / "models" / FILE)
    monkeypatch.setenv("KERAS_HOME", str(own))
    expected = extract(folder / "photos", NAME, out=tmp_path / "root.h5")

    planted = folder / ".keras"
    (planted / "models").mkdir(parents=True)
    save(planted / "models" / FILE)
    (planted / "keras.json").write_text('{"floatx": "float16", "image_data_format": "channels_first"}')

    (folder / "out").mkdir()
    (folder / "out").chmod(0o777)
    command = [sys.executable, "-m", "featcache_cli.app", "extract", "photos", "-b", NAME, "-o", "out/nobody.h5", "-q"]
    done = run(*command, home=home)
    assert done.returncode == 0, done.stderr
    nobody = Cache.open(folder / "out" / "nobody.h5")
    assert np.array_equal(nobody.features(nobody.usable()), expected.features(expected.usable()))

    (own / "models" / FILE).unlink()
    done = run(*command, home=home)
    assert done.returncode == 5
    assert f"{FILE} is missing, and " in done.stderr.splitlines()[-1]
    assert (planted / "models" / FILE).exists()
