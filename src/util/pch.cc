#include "util/pch.h"
