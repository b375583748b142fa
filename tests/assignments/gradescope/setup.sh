#!/bin/sh
pip install -r /autograder/source/requirements.txt pytest hypothesis
