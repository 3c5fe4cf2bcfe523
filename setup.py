"""The extension modules: their sources, the instruction sets, a probe for OpenMP. Metadata is in pyproject.toml.

Environment variables: RMSFAST_OPENMP=0 builds without threads; RMSFAST_SANITIZE=address,undefined builds with gcc's and
clang's sanitizers; RMSFAST_COVERAGE=1 counts which lines run (tools/coverage.py); RMSFAST_FREE_THREADED=1 declares that
the modules need no GIL, which only the release workflow says, to test it (docs/reliability.md).
"""

import os
import sys
import tempfile
from pathlib import Path
from sysconfig import get_platform

import Cython
import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, LinkError

CORE = "rmsfast/_core"
CSRC = f"{CORE}/csrc"
COVERAGE = os.environ.get("RMSFAST_COVERAGE") == "1"
FREE_THREADED = os.environ.get("RMSFAST_FREE_THREADED") == "1"
# The wide instruction sets of x86-64. A macOS build for two processors at once has the floor only.
WIDE = get_platform().endswith(("x86_64", "amd64"))

# The bit contract's part of the build: no contraction into fused multiply-add, and nothing of what -ffast-math in the
# user's CFLAGS or LDFLAGS would bring; at link time that would switch subnormals off for the whole process. The last
# two switches change no bit and let the compiler vectorize square root and division. (With c11 in the place of gnu11,
# GCC computes in double where a float is wanted, on s390x.)
EXACT = ["-fno-fast-math", "-fno-unsafe-math-optimizations"]
GNU_FLAGS = ["-O3", "-std=gnu11", *EXACT, "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
MSVC_FLAGS = ["/O2", "/std:c11", "/fp:precise"]

# By compiler family, the flags of each isa_*.c file.
ISA_FLAGS = {
    "unix": {
        "baseline": [],
        "avx2": ["-mavx2", "-mfma", "-mf16c"],
        "avx512": ["-mavx512f", "-mavx512vl", "-mprefer-vector-width=512"],
    },
    "msvc": {"baseline": [], "avx2": ["/arch:AVX2"], "avx512": ["/arch:AVX512"]},
}

# By compiler family, what to try for OpenMP: flags to compile with, flags to link with.
OPENMP_FLAGS = {
    "unix": [(["-fopenmp"], ["-fopenmp"]), (["-Xpreprocessor", "-fopenmp"], ["-lomp"])],
    "msvc": [(["/openmp"], [])],
}

# What to do about what a build lacks.
NO_COMPILER = """
rmsfast: to build from source takes a C compiler and Python's headers, and a file that includes Python.h does not
compile here. Install them (Debian, Ubuntu: apt install gcc python3-dev; Fedora: dnf install gcc python3-devel; macOS:
xcode-select --install; Windows: Visual Studio's Build Tools, with "Desktop development with C++"), or take a wheel:
pip install --only-binary rmsfast rmsfast
"""
NO_OPENMP = """
rmsfast: this compiler has no OpenMP, so steps will use one thread. gcc and MSVC have it; clang needs LLVM's runtime
(Debian, Ubuntu: apt install libomp-dev; Fedora: dnf install libomp-devel; macOS: see docs/wheels.md).
"""
OLD_NUMPY = f"""
rmsfast: to build from source takes NumPy 2.0 or newer, and this is {numpy.__version__}: pip install --upgrade numpy,
or leave out --no-build-isolation
"""
if int(numpy.__version__.partition(".")[0]) < 2:
    sys.exit(OLD_NUMPY)


class BuildExt(build_ext):
    def build_extensions(self):
        self.force = True  # the environment may ask for other flags than the last build had
        family = "msvc" if self.compiler.compiler_type == "msvc" else "unix"
        flags = MSVC_FLAGS if family == "msvc" else GNU_FLAGS
        if not self.builds("#include <Python.h>\n"):
            sys.exit(NO_COMPILER)
        sanitize = os.environ.get("RMSFAST_SANITIZE")
        checked = ["-g", "-fno-omit-frame-pointer", f"-fsanitize={sanitize}"] if sanitize else []
        if COVERAGE:
            checked += ["-O0", "--coverage", "-fprofile-update=atomic"]
        openmp_compile, openmp_link = self.probe_openmp(OPENMP_FLAGS[family])
        for extension in self.extensions:
            extension.extra_compile_args += flags + checked + openmp_compile
            extension.extra_link_args += (EXACT if family == "unix" else []) + checked + openmp_link
            if extension.name != "rmsfast._core.kernel":
                extension.extra_compile_args += ["-O2"] if family == "unix" and not COVERAGE else []
                continue  # with few loops of its own: -O3 would only make it larger
            for isa in ["baseline", "avx2", "avx512"] if WIDE else ["baseline"]:
                extension.extra_objects += self.compiler.compile(
                    [f"{CSRC}/isa_{isa}.c"],
                    output_dir=self.build_temp,
                    extra_postargs=flags + checked + ISA_FLAGS[family][isa],
                    depends=extension.depends,
                )
        super().build_extensions()

    def probe_openmp(self, candidates):
        """Return the first flags with which a small OpenMP program compiles and links; none if none do."""
        if os.environ.get("RMSFAST_OPENMP") == "0":
            return [], []
        program = "#include <omp.h>\nint probe(void) { return omp_get_max_threads(); }\n"
        for compile_flags, link_flags in candidates:
            if self.builds(program, compile_flags, link_flags):
                return compile_flags, link_flags
        print(NO_OPENMP, file=sys.stderr)
        return [], []

    def builds(self, program, compile_flags=(), link_flags=None):
        """Return whether a program compiles and, where there are flags to link with, links."""
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder, "probe.c")
            source.write_text(program)
            try:
                objects = self.compiler.compile([str(source)], output_dir=folder, extra_postargs=list(compile_flags))
                if link_flags is not None:
                    self.compiler.link_shared_object(objects, str(Path(folder, "probe")), extra_postargs=link_flags)
            except (CompileError, LinkError):
                return False
        return True


# Of each module of the core, the C files beside the .pyx.
C_FILES = {
    "threads": [],
    "kernel": ["dispatch.c", "strided.c"],
    "rows": ["rows.c"],
    "plan": ["overlap.c"],
    "formats": [],
    "measures": [],
    "arrays": [],
    "steps": [],
    "tensors": [],
}
modules = [
    Extension(
        f"rmsfast._core.{name}",
        sources=[f"{CORE}/{name}.pyx", *(f"{CSRC}/{file}" for file in files)],
        include_dirs=[CORE, numpy.get_include()],
        depends=[str(file) for folder in (CORE, CSRC) for file in sorted(Path(folder).glob("*.[hp]*"))],
        define_macros=[
            ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
            *([("RMSFAST_WIDE", "1")] if WIDE else []),
        ],
    )
    for name, files in C_FILES.items()
]

setup(
    ext_modules=cythonize(
        modules,
        language_level=3,
        # No other release takes this one's C, and no build with the other answer about the GIL.
        build_dir=f"build/cython-{Cython.__version__}-numpy-{numpy.__version__}{'-free-threaded' * FREE_THREADED}",
        emit_linenums=COVERAGE,
        compiler_directives={
            "cdivision": True,
            "auto_pickle": False,
            "autotestdict": False,
            "freethreading_compatible": FREE_THREADED,
        },
    ),
    cmdclass={"build_ext": BuildExt},
)
