"""Builds the C++ kernels into the package while it is installed; everything else is in pyproject.toml.

Without a compiler the installation goes on: the torch implementations run, and `indexshare doctor` says why.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from types import ModuleType

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
KERNELS = Path("indexshare") / "ops" / "native.py"


def load_builder() -> ModuleType:
    """`indexshare/ops/native.py` alone: it needs the standard library only, and torch is not here yet."""
    spec = importlib.util.spec_from_file_location("indexshare_native", ROOT / KERNELS)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class BuildWithKernels(build_py):
    """Compiles for this processor: into the source tree if that is what gets installed, else into the build."""

    def run(self) -> None:
        super().run()
        builder = load_builder()
        root = ROOT if self.editable_mode else Path(self.build_lib)
        target = root / KERNELS.parent / "lib"
        shutil.rmtree(target, ignore_errors=True)  # libraries of earlier sources
        try:
            for library in builder.install(target):
                self.announce(f"kernels: {library}", level=2)
        except (OSError, builder.subprocess.SubprocessError) as error:
            self.warn(f"C++ kernels were not built, the torch implementations will run: {error}")


class KernelDistribution(Distribution):
    """A wheel with compiled kernels in it runs on one kind of machine only."""

    def has_ext_modules(self) -> bool:
        return True


setup(cmdclass={"build_py": BuildWithKernels}, distclass=KernelDistribution)
