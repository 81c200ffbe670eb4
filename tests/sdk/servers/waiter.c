/* A C program with Thaw's header: ready, waits, and says what came of it. */
#include "thaw.h"

int main(void) {
  char replica[64] = "?";
  int restored;
  if (!thaw_inside() || !thaw_checkpoint_enabled()) return 2;
  if (thaw_wait_for_restore(20) != 0) return 3;
  if (thaw_ready() != 0) {
    perror("thaw_ready");
    return 4;
  }
  restored = thaw_wait_for_restore(-1);
  if (thaw_identity("replica", replica, sizeof replica) != 0) return 5;
  printf("waited: %d as %s\n", restored, replica);
  fflush(stdout);
  for (;;) pause();
}
