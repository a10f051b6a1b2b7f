"""Licences of the packages in requirements.lock: the first half of `make audit`."""

import re
import sys
from importlib import metadata
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
# Licences under which a package may be used by, and beside, a program under the MIT licence.
FIT = re.compile(
    r"MIT|BSD|Apache|ISC|PSF|Python Software Foundation|MPL-2\.0|Mozilla Public License 2\.0|Zlib"
    r"|CC0|Public Domain|HPND|Unlicense"
)
KNOWN = {  # what a package's own description leaves out or makes look worse
    "docutils": "Public Domain, BSD, and GPL for an Emacs mode that is not installed",
    "namex": "Apache-2.0 (in its LICENSE file)",
}


def licences(lock=LOCK):
    """Dict from each locked package to its licence; `None` where it is not installed here."""
    found = {}
    for name in sorted(set(re.findall(r"^([a-z0-9][a-z0-9._-]*)==", lock.read_text(), re.M))):
        try:
            about = metadata.metadata(name)
        except metadata.PackageNotFoundError:  # of another platform
            found[name] = None
            continue
        classes = [c.split(" :: ")[-1] for c in about.get_all("Classifier") or [] if "Licen" in c]
        text = (about.get("License") or "").strip().split("\n")[0]
        found[name] = about.get("License-Expression") or ", ".join(classes) or text or "none named"
    return found


def unfit(found):
    """Those of `licences()` that a person has to look at."""
    return {
        name: licence
        for name, licence in found.items()
        if licence and name not in KNOWN and ("GPL" in licence or not FIT.search(licence))
    }


def main():
    found = licences()
    for name, licence in found.items():
        print(f"{name:32}{KNOWN.get(name, licence or 'not installed on this platform')}")
    bad = unfit(found)
    print(f"\n{len(found)} packages, {len(bad)} with a licence to look at: {bad or 'none'}\n")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
