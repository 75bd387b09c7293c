#!/usr/bin/env node
// Stands in the tree so that package managers can link it before the build.
import '../dist/cli.js';
