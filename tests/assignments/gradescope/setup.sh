#!/bin/sh
# Plain Ubuntu has neither pip nor python; PyTorch without CUDA is 200 MB and not 3 GB.
set -e
apt-get update
apt-get install -y python3 python3-venv
python3 -m venv /autograder/venv
/autograder/venv/bin/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
/autograder/venv/bin/pip install -r /autograder/source/requirements.txt pytest hypothesis
