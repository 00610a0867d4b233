"""Builds the C++ part: runs CMake (ninja) into the package. Sources and flags: CMakeLists.txt."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def tool(name: str) -> str:
    """Path of cmake or ninja: the one beside this interpreter, or the system's."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    path = shutil.which(name, path=folders)
    if path is None:
        raise SystemExit(f"prunekern: the build needs {name}, got none: pip install {name}")
    return path


class CMakeBuild(build_ext):
    """One CMake run makes both extensions; an editable build goes into the source tree."""

    def run(self) -> None:
        inplace = self.inplace or self.editable_mode
        package = ROOT / "prunekern" if inplace else Path(self.build_lib).resolve() / "prunekern"
        build = ROOT / "build" if inplace else Path(self.build_temp).resolve()
        configure = [
            *(tool("cmake"), "-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DPRUNEKERN_OUTPUT={package}",
        ]
        subprocess.run(configure, check=True)
        subprocess.run([tool("cmake"), "--build", str(build)], check=True)

    def get_outputs(self) -> list[str]:
        package = Path(self.build_lib) / "prunekern"
        return [str(package / "_ops.so"), self.get_ext_fullpath("prunekern._C")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


setup(
    ext_modules=[Extension("prunekern._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
