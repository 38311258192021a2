"""Packaging of tca_jax; the experiments run from a clone."""

import pathlib
import re

import setuptools

_ROOT = pathlib.Path(__file__).parent
_INIT = (_ROOT / "tca_jax" / "__init__.py").read_text(encoding="utf-8")

setuptools.setup(
  name="tca-jax",
  version=re.search(r'__version__ = "(.+)"', _INIT).group(1),
  description="Tree Cross Attention and ReTreever in JAX and Flax",
  long_description=(_ROOT / "README.md").read_text(encoding="utf-8"),
  long_description_content_type="text/markdown",
  keywords=["attention", "deep learning", "flax", "jax", "k-d tree", "neural process"],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Developers",
    "Intended Audience :: Science/Research",
    "Operating System :: OS Independent",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Typing :: Typed",
  ],
  license="Apache-2.0",
  license_files=["LICENSE"],
  python_requires=">=3.11",
  packages=["tca_jax", "tca_jax.modules"],
  package_data={"tca_jax": ["py.typed"]},
  install_requires=["chex>=0.1.90", "flax>=0.12", "jax>=0.7.1", "numpy>=2.0"],
  extras_require={
    "checkpoint": ["etils>=1.12", "orbax-checkpoint>=0.12,<0.13"],
    "data": [
      "airportsdata>=20240119",
      "mlxtend>=0.23",
      "scikit-image>=0.25",
      "scikit-learn>=1.5",
      "seglearn>=1.2.5",
    ],
    "docs": ["myst-nb>=1.4", "sphinx>=9.0", "sphinx-book-theme>=1.4"],
    "export": ["flatbuffers>=25.1"],
    "experiments": [
      "absl-py>=2.1",
      "array_record>=0.8",
      "etils>=1.12",
      "importlib_resources>=6.0",
      "matplotlib>=3.9",
      "optax>=0.2.8",
      "orbax-checkpoint>=0.12,<0.13",
      "pillow>=10.1",
      "scipy>=1.14",
      "tensorboardX>=2.6",
      "tensorflow-datasets>=4.9.9",
      "tqdm>=4.66",
    ],
    "tables": ["pandas>=2.2", "pyarrow>=17"],
  },
)
