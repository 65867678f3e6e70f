#include <greet.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    char buffer[64];
    const char *name = argc > 1 ? argv[1] : "world";
    if (greet(buffer, sizeof buffer, name) < 0) {
        fprintf(stderr, "greet: this name is too long\n");
        return 1;
    }
    puts(buffer);
    return 0;
}
