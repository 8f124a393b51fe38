# SPDX-License-Identifier: Apache-2.0
"""A report of `quern compare`, opened in headless Chromium at the widths of a phone and of a desk."""

import json
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUERN = ROOT / "build" / "quern"
VIEW = ROOT / "scripts" / "view_report"
# As a path, so that the name of the model holds "</script>".
HOSTILE = pathlib.Path("<") / "script><img src=x onerror=alert(1)>"
PROMPT = "The city </script><img src=y> & 'so' \"on\""


def view(report, *arguments):
    ran = subprocess.run([sys.executable, VIEW, report, *arguments], capture_output=True, text=True, check=False)
    if ran.returncode == 77:
        raise unittest.SkipTest(ran.stderr.strip())
    return ran


class ReportPage(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        folder = pathlib.Path(cls.scratch.name)
        (folder / "blank.html").write_text("<!DOCTYPE html><html data-ready=yes>", encoding="utf-8")
        view(folder / "blank.html")  # skips all where there is no browser
        model = folder / HOSTILE
        shutil.copytree(ROOT / "models" / "tiny", model)
        cls.report = folder / "report.html"
        subprocess.run(
            [QUERN, "compare", model, "--work", folder / "work", "--ctx", "64", "--windows", "2", "--nsamples", "2",
             "--seqlen", "32", "--no-speed", "--samples", "1", "-n", "8", "-p", PROMPT, "--report", cls.report,
             "--recipes", "rtn(int(8)); rtn(int(2)); ldlq(int(4, group=64)); "
             "rtn(int(3, group=128)) @ layers[0:2] | rtn(int(6)) @ attn | rtn(int(4)) @ all+embed"],
            check=True, capture_output=True)

    def found(self, *arguments):
        ran = view(self.report, *arguments)
        self.assertEqual(ran.returncode, 0, ran.stdout + ran.stderr)
        return json.loads(ran.stdout)

    def test_it_opens_without_a_word_and_fits_the_window(self):
        for width, scheme in ((320, []), (390, ["--dark"])):
            found = self.found("--width", str(width), *scheme)
            self.assertTrue(found["ready"])
            self.assertLessEqual(found["content_width"], width)
            self.assertEqual(found["charts"], 3)
            self.assertTrue(found["named"], "charts have names for readers who do not see them")

    def test_names_samples_and_numbers_are_text(self):
        found = self.found()  # at the width of a desk
        self.assertEqual(found["charts"], 3)
        self.assertEqual(found["images"], 0)
        self.assertIn(str(HOSTILE), found["title"])
        self.assertIn(PROMPT.split(" ", 2)[2], found["text"])
        text = found["text"]
        for recipe in ("original", "rtn(int(8))", "rtn(int(2))", "ldlq(int(4, group=64))"):
            self.assertIn(recipe, text)
        self.assertIn("8.13", text)  # the map of the first: 8 bits and a scale of a half for 128 weights
        self.assertIn("KL alone", text)
        self.assertIn("calibrated on drawn from the model, 64 tokens", text)

    def test_a_page_that_complains_or_is_too_wide_fails(self):
        page = self.report.read_text(encoding="utf-8")
        for broken in (page.replace("</body>", "<script>undefined_name()</script></body>"),
                       page.replace("</body>", "<div style='width:3000px'>wide</div></body>")):
            other = self.report.with_name("broken.html")
            other.write_text(broken, encoding="utf-8")
            self.assertEqual(view(other).returncode, 1)


unittest.main()
