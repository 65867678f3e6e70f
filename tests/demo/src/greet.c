#include "greet.h"

#include <stdio.h>

int greet(char *buffer, unsigned long size, const char *name)
{
    int length = snprintf(buffer, size, "Hello, %s!", name);
    return length >= 0 && (unsigned long)length < size ? length : -1;
}
