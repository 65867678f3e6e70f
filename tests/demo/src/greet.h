#ifndef GREET_H
#define GREET_H

/* Write a greeting for NAME into BUFFER of SIZE bytes; returns its length, or -1 if it does not fit. */
int greet(char *buffer, unsigned long size, const char *name);

#endif
