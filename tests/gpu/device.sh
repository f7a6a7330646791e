# Source this on a bare GPU machine: makes `seerbench`, `seerbench.kernels` importable without an install.
rm -rf /tmp/path && mkdir -p /tmp/path/seerbench
ln -s "$PWD"/seerbench/* /tmp/path/seerbench/
ln -s "$PWD/kernels" /tmp/path/seerbench/kernels
ln -s "$PWD/baselines" /tmp/path/seerbench/baselines
export PYTHONPATH=/tmp/path PYTHONUNBUFFERED=1
