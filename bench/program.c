/* What bench_exec starts: a program of more than 10 MiB that says when it has reached main, and stays. */
#include <unistd.h>

__asm__(".text\n.fill 10485760, 1, 0x90\n");

int main(void) {
  char c = 'm';
  if (write(STDOUT_FILENO, &c, 1) != 1) return 1;
  while (pause() == 0) {
  }
  return 0;
}
