/* Maps a page through the installed library's C face, writes to it and reads it back. */
#include <mapbroker/mapbroker.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int main(void) {
  mb_session* session = mb_connect(NULL);
  char* page = session == NULL ? MAP_FAILED
                               : mb_mmap(session, NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (page == MAP_FAILED) return perror("holder_c"), 1;
  strcpy(page, "in C");
  puts(page);
  return 0;
}
